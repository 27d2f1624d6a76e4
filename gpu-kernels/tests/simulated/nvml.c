/* A simulated NVML (libnvidia-ml.so.1): sixteen GPUs that report the same and no memory error. */
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;
static int gpu;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 16; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &gpu; return index < 16 ? 0 : 2; }
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *to) { *to = (utilization_t){42, 7}; return device != &gpu; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *to) { *to = (memory_t){80, 50, 30}; return device != &gpu; }
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *to) { *to = 61 + sensor; return device != &gpu; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *to) { *to = 123456; return device != &gpu; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *to) { *to = 1; return device != &gpu; }
int nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, unsigned long long *to) {
    *to = 0;
    return device != &gpu || type != 1 || counter != 0;
}
