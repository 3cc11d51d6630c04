/* Stands in for the driver's library, to which vLLM's CUDA build is linked: each function says that there is no
   device. The arguments do not matter. */
#define NO_DEVICE 100 /* CUDA_ERROR_NO_DEVICE */
#define STUB(name) int name(void) { return NO_DEVICE; }

STUB(cuCtxGetCurrent)
STUB(cuCtxSetCurrent)
STUB(cuDeviceGetAttribute)
STUB(cuDevicePrimaryCtxRetain)
STUB(cuGetErrorString)
STUB(cuGetProcAddress_v2)
STUB(cuMemAddressFree)
STUB(cuMemAddressReserve)
STUB(cuMemCreate)
STUB(cuMemGetAllocationGranularity)
STUB(cuMemMap)
STUB(cuMemRelease)
STUB(cuMemSetAccess)
STUB(cuMemUnmap)
STUB(cuPointerGetAttribute)
STUB(cuTensorMapEncodeTiled)
