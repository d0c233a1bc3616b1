#include <errno.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static uint32_t vw_act_errno(uint16_t error)
{
  return SCMP_ACT_ERRNO(error);
}

/* Writes the compiled program to buf and its length to *len, which holds buf's size on entry.
 * Returns 0 or -errno (-E2BIG: buf is too small).
 * libseccomp 2.6 exports to memory; older ones only to a descriptor, for which a memfd serves.
 * Runs in whatever process compiles a policy, always before that process has a filter. */
static int vw_export_bpf(scmp_filter_ctx ctx, void *buf, size_t *len)
{
#if SCMP_VER_MAJOR > 2 || (SCMP_VER_MAJOR == 2 && SCMP_VER_MINOR >= 6)
  int rc = seccomp_export_bpf_mem(ctx, buf, len);
  return rc == -ERANGE ? -E2BIG : rc;
#else
  int fd = memfd_create("bpf", MFD_CLOEXEC);
  if (fd < 0)
    return -errno;
  int rc = seccomp_export_bpf(ctx, fd);
  if (rc == 0) {
    off_t size = lseek(fd, 0, SEEK_END);
    if (size < 0)
      rc = -errno;
    else if ((size_t)size > *len)
      rc = -E2BIG;
    else {
      ssize_t got = pread(fd, buf, (size_t)size, 0);
      if (got == (ssize_t)size)
        *len = (size_t)got;
      else
        rc = got < 0 ? -errno : -EIO;
    }
  }
  close(fd);
  return rc;
#endif
}
