/* As vsock.c, but the device sleeps until the host says LISTEN: a guest that takes its time to boot. */
#define LATE
#include "vsock.c"
