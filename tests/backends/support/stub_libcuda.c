/* A stand-in for the NVIDIA driver's library, so that a machine without a GPU can act out the ways in which a driver fails.
 *
 * Build it as libcuda.so.1 and put its folder on LD_LIBRARY_PATH. The environment sets what it says:
 *   STUB_DRIVER  the CUDA version it supports, for example 12040 (default 13000)
 *   STUB_INIT    what cuInit returns (default 100, CUDA_ERROR_NO_DEVICE)
 */
#include <stdlib.h>
#include <string.h>

typedef int status;

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

status cuDriverGetVersion(int *version) {
    *version = setting("STUB_DRIVER", 13000);
    return 0;
}

status cuInit(unsigned int flags) {
    (void)flags;
    return setting("STUB_INIT", 100);
}

status cuGetErrorString(int error, const char **text) {
    (void)error;
    *text = "an error of the stand-in driver";
    return 0;
}

status cuGetErrorName(int error, const char **text) {
    (void)error;
    *text = "STUB_ERROR";
    return 0;
}

static status refuse(void) { return 100; }

/* What cuDNN's libraries are linked with; nothing of it is called before a device is used. */
status cuModuleLoadData(void) { return refuse(); }
status cuModuleUnload(void) { return refuse(); }
status cuModuleGetFunction(void) { return refuse(); }
status cuTensorMapEncodeTiled(void) { return refuse(); }
status cuTensorMapEncodeIm2col(void) { return refuse(); }

typedef void (*entry)(void);

/* The CUDA runtime looks every function up here by name, and refuses a driver that lacks any. */
status cuGetProcAddress_v2(const char *symbol, void **address, int version, unsigned long long flags, int *found) {
    static const struct {
        const char *name;
        entry function;
    } known[] = {
        {"cuDriverGetVersion", (entry)cuDriverGetVersion},
        {"cuInit", (entry)cuInit},
        {"cuGetErrorString", (entry)cuGetErrorString},
        {"cuGetErrorName", (entry)cuGetErrorName},
        {"cuGetProcAddress", (entry)cuGetProcAddress_v2},
    };
    entry answer = (entry)refuse;
    (void)version;
    (void)flags;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; ++i)
        if (!strcmp(symbol, known[i].name)) answer = known[i].function;
    memcpy(address, &answer, sizeof answer);
    if (found) *found = 0;
    return 0;
}

status cuGetProcAddress(const char *symbol, void **address, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(symbol, address, version, flags, NULL);
}
