/* The view: a mount namespace of the process's own, in which only what is listed exists.
 *
 * Runs in the worker, at S0, before capabilities are given up and before Landlock, which forbids
 * mounting. No allocation, no GIL needed. Takes Linux 5.12. */
#ifndef VW_VIEW_H
#define VW_VIEW_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
  const char *path;   /* where it lies: absolute, and no link on the way to it */
  const char *target; /* what it says */
} vw_view_link;

/* Paths are absolute, with no link, "." or ".." in them, none inside another, none of them "/". */
typedef struct {
  const char *const *shown; /* files and folders, with all that is mounted below them */
  size_t shown_count;
  const vw_view_link *links; /* outside of what is shown */
  size_t link_count;
} vw_view;

/* Which step of vw_view_enter failed: the order in which they happen. */
typedef enum {
  VW_VIEW_THREADS,   /* there must be one: the others would go on seeing everything */
  VW_VIEW_PATHS,     /* are they such as they must be? */
  VW_VIEW_NAMESPACE, /* of mounts; without CAP_SYS_ADMIN, of users, too */
  VW_VIEW_USERS,     /* the same ids inside as outside */
  VW_VIEW_PRIVATE,   /* no mount of ours is seen outside, and none from there here */
  VW_VIEW_ROOT,      /* an empty folder in memory, to become "/" */
  VW_VIEW_SHOW,      /* what is listed: *at is its index in `shown` */
  VW_VIEW_LINK,      /* *at is its index in `links` */
  VW_VIEW_SELF,      /* /proc/self, and no other process */
  VW_VIEW_READ_ONLY, /* all of it, in one go */
  VW_VIEW_PIVOT,     /* "/" is the new root */
  VW_VIEW_DETACH,    /* the old one is gone */
} vw_view_step;

/* 0; the working directory is "/" then. Else -errno and the step that failed. Up to VW_VIEW_PIVOT what
 * was mounted is taken back: the process sees what it saw before, although maybe in namespaces of its
 * own. From VW_VIEW_DETACH on, it is neither in nor out, and must exit. */
int vw_view_enter(const vw_view *wanted, vw_view_step *failed, size_t *at);
const char *vw_view_step_name(vw_view_step step);

#endif
