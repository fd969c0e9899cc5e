/* In Firecracker's place in its jail: tries what a VMM that was taken over would, and says how each ended.
 *
 * A line for each attempt: its name, then "ok" and what it got, or the errno. "done" is the last, and then it waits.
 * Arguments: the address of a listener of the host's (port), a pid of the host's, the number of a key of the host's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void say(const char *name, long result) {
    if (result < 0)
        printf("%s %d\n", name, errno);
    else
        printf("%s ok %ld\n", name, result);
    fflush(stdout);
}

static int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    return connect(descriptor, (struct sockaddr *)&address, sizeof address);
}

static int connect_abstract(int port) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = sprintf(address.sun_path + 1, "casemate-%d", port);
    int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(descriptor, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

static int tun(void) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int descriptor = open("/dev/net/tun", O_RDWR);
    return descriptor < 0 ? -1 : ioctl(descriptor, TUNSETIFF, &request);
}

static int is_another_above(void) {
    struct stat here, above;
    stat("/", &here);
    if (chdir("/") != 0 || chdir("../../../..") != 0)
        return -1;
    stat(".", &above);
    return here.st_ino != above.st_ino || here.st_dev != above.st_dev;
}

static long fill(const char *path) {
    static char piece[1 << 16];
    long written = 0, got;
    int descriptor = open(path, O_CREAT | O_WRONLY, 0600);
    if (descriptor < 0)
        return -1;
    signal(SIGXFSZ, SIG_IGN);
    while ((got = write(descriptor, piece, sizeof piece)) > 0)
        written += got;
    close(descriptor);
    unlink(path);
    return written;
}

static long processes(void) {
    long made = 0;
    for (;;) {
        int pid = fork();
        if (pid == 0)
            for (;;)
                pause();
        if (pid < 0)
            break;
        made++;
    }
    signal(SIGTERM, SIG_IGN);
    kill(-1, SIGTERM);
    while (wait(NULL) > 0)
        ;
    return made;
}

static int a_user_namespace(void) {
    int pid = fork(), status;
    if (pid == 0)
        _exit(unshare(CLONE_NEWUSER) == 0 ? 0 : errno);
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : EPERM;
    return -1;
}

static long descriptors(void) {
    long found = 0;
    for (int number = 0; number < 1024; number++)
        found += fcntl(number, F_GETFD) >= 0;
    return found;
}

static long entries(const char *path) {
    long found = 0;
    struct dirent *entry;
    DIR *folder = opendir(path);
    if (folder == NULL)
        return -1;
    while ((entry = readdir(folder)) != NULL)
        if (entry->d_name[0] != '.') {
            printf("in %s %s\n", path, entry->d_name);
            found++;
        }
    closedir(folder);
    return found;
}

int main(int count, char **words) {
    int port = 0, pid = 0, key = 0;
    if (strcmp(words[0], "program") == 0) {
        printf("execute-in-exchange ok 0\ndone\n");
        fflush(stdout);
        for (;;)
            pause();
    }
    struct rlimit more = {RLIM_INFINITY, RLIM_INFINITY};
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct all[2] = {{~0u, ~0u, ~0u}, {~0u, ~0u, ~0u}};
    for (int n = 1; n < count; n++)
        if (strcmp(words[n], "--try") == 0 && n + 3 < count)
            port = atoi(words[n + 1]), pid = atoi(words[n + 2]), key = atoi(words[n + 3]);

    say("descriptors", descriptors());
    say("environment", environ[0] == NULL ? 0 : 1);
    entries("/");
    say("another-above", is_another_above());
    say("proc", open("/proc/self/status", O_RDONLY));
    say("passwd", open("/etc/passwd", O_RDONLY));
    say("write-bind", open("/given", O_WRONLY));
    say("read-bind", open("/given", O_RDONLY));
    say("chmod-bind", chmod("/given", 0777));
    say("remount-bind", mount(NULL, "/given", NULL, MS_REMOUNT | MS_BIND, NULL));
    say("unmount-bind", umount2("/given", MNT_DETACH));
    say("unlink-bind", unlink("/given"));
    say("read-others", open("/others", O_RDONLY));
    say("mknod-disk", mknod("/disk", S_IFBLK | 0600, makedev(254, 0)));
    say("mknod-memory", mknod("/memory", S_IFCHR | 0600, makedev(1, 1)));
    say("device-in-exchange", open("/exchange/null", O_RDWR));
    say("execute-in-exchange", execl("/exchange/program", "program", NULL));
    say("mount", mount("tmpfs", "/run", "tmpfs", 0, NULL));
    say("chroot", chroot("/run"));
    say("setuid", setuid(0));
    say("setgid", setgid(0));
    say("setgroups", syscall(SYS_setgroups, 1, &(gid_t){0}));
    say("capset", syscall(SYS_capset, &head, all));
    say("user-namespace", a_user_namespace());
    say("net-namespace", unshare(CLONE_NEWNET));
    say("kill-host", kill(pid, 0));
    say("ptrace-host", ptrace(PTRACE_ATTACH, pid, NULL, NULL));
    say("kill-first", kill(1, SIGKILL));
    say("ptrace-first", ptrace(PTRACE_ATTACH, 1, NULL, NULL));
    say("parent", getppid());
    say("loopback", connect_to(port));
    say("abstract", connect_abstract(port));
    say("shared-memory", shmget(key, 0, 0));
    say("tun", tun());
    say("kvm", open("/dev/kvm", O_RDWR));
    say("more-files", setrlimit(RLIMIT_NOFILE, &more));
    say("more-core", setrlimit(RLIMIT_CORE, &more));
    say("lock", syscall(SYS_mlock, words, 4096));
    say("priority", setpriority(PRIO_PROCESS, 0, -5));
    say("oom", open("/proc/self/oom_score_adj", O_WRONLY));
    say("fill-root", fill("/filler"));
    say("fill-exchange", fill("/exchange/filler"));
    say("processes", processes());
    printf("done\n");
    fflush(stdout);
    for (;;)
        pause();
}
