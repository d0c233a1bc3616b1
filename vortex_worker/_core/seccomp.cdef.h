/* The part of <seccomp.h> that sandbox/seccomp.py uses, as cffi reads it. Each `...` is filled in by the C compiler. */

typedef void *scmp_filter_ctx;

enum scmp_compare { SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ, ... };

struct scmp_arg_cmp {
  unsigned int arg;      /* which argument, from 0 */
  enum scmp_compare op;
  uint64_t datum_a;      /* EQ: the value.  MASKED_EQ: the mask  */
  uint64_t datum_b;      /*                 MASKED_EQ: the value */
  ...;
};

enum scmp_filter_attr { SCMP_FLTATR_ACT_BADARCH, SCMP_FLTATR_CTL_OPTIMIZE, ... };

#define SCMP_ACT_ALLOW ...
#define SCMP_ACT_KILL_PROCESS ...
#define SCMP_ACT_NOTIFY ...
#define __NR_SCMP_ERROR ...
#define SCMP_ARCH_X32 ...

scmp_filter_ctx seccomp_init(uint32_t default_action);
void seccomp_release(scmp_filter_ctx ctx);
int seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int seccomp_syscall_resolve_name(const char *name);
char *seccomp_syscall_resolve_num_arch(uint32_t arch_token, int num); /* the caller frees it; NULL: no such call */
uint32_t seccomp_arch_native(void);
void free(void *);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int arg_cnt,
                           const struct scmp_arg_cmp *arg_array);

uint32_t vw_act_errno(uint16_t error);          /* SCMP_ACT_ERRNO is a macro with an argument */
int vw_export_bpf(scmp_filter_ctx ctx, void *buf, size_t *len);
