/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later
 *
 * A plugin for QEMU that mends three faults of its emulation. Each of them made a guest
 * of the emulated host stand still, or have a triple fault, once in some hundred boots.
 *
 * 1. With an external interrupt in the VMCB's EVENTINJ field, helper_vmrun() sets
 *    exception_index to the interrupt's vector, delivers the interrupt, and leaves
 *    exception_index as it is. If the next thing that makes the CPU leave its loop is not
 *    a VM exit (a timer that is due, another thread that wants the lock), the main loop
 *    takes it for an exception that is still to be delivered, and delivers the interrupt
 *    again: into its own handler, and whether interrupts are enabled or not. The guest
 *    then waits for a lock that it holds itself, or has a triple fault.
 *
 *    Here a VMRUN that comes back to its caller ends with the loop being left without an
 *    exception.
 *
 * 2. helper_vmrun() sets a bit of interrupt_request by reading, changing and writing it
 *    without the lock under which other threads raise interrupts in the same word. What
 *    another thread raised meanwhile is lost, and the host waits for its timer for ever.
 *
 *    Here VMRUN holds that lock. Where it is left by a jump (a fault, a VM exit), the loop
 *    of the CPU gives the lock back, as it does here.
 *
 * 3. Whatever CPU loads a state of the x87 unit clears a bit in hflags2 of the *first*
 *    CPU (cpu_clear_ignne()), again by reading, changing and writing. If the first CPU is
 *    in VMRUN then, it loses what it has just written there: that nested paging is on, for
 *    one, and the guest's page tables are looked for in the host's memory.
 *
 *    The bit stands for a wire of the PC/AT, which only systems use that leave CR0.NE
 *    clear. Here nothing is cleared: the function returns at once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define RET 0xc3

/* How QEMU's translator calls a helper; the function comes first. */
struct helper_info {
    void *func;
};

EXPORT int qemu_plugin_version = 4;

static void (*helper_vmrun)(void *env, int aflag, int next_eip_addend);
static void (*cpu_loop_exit_noexc)(void *cpu);
static void (*bql_lock_impl)(const char *file, int line);

static void vmrun(void *env, int aflag, int next_eip_addend)
{
    /* A variable of the thread, which has one address in each. */
    static __thread void **current_cpu;

    if (!current_cpu) {
        current_cpu = dlsym(RTLD_DEFAULT, "current_cpu");
    }
    bql_lock_impl(__FILE__, __LINE__);
    helper_vmrun(env, aflag, next_eip_addend);
    cpu_loop_exit_noexc(*current_cpu);
}

/* Makes a function that has no result return at once. No CPU runs yet. */
static int disarm(void *function)
{
    uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    void *page = (void *)((uintptr_t)function & ~(page_size - 1));

    if (!function || mprotect(page, page_size, PROT_READ | PROT_WRITE | PROT_EXEC)) {
        return 0;
    }
    *(volatile uint8_t *)function = RET;
    return !mprotect(page, page_size, PROT_READ | PROT_EXEC);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    struct helper_info *helper = dlsym(RTLD_DEFAULT, "helper_info_vmrun");

    (void)id, (void)info, (void)argc, (void)argv;
    helper_vmrun = dlsym(RTLD_DEFAULT, "helper_vmrun");
    cpu_loop_exit_noexc = dlsym(RTLD_DEFAULT, "cpu_loop_exit_noexc");
    bql_lock_impl = dlsym(RTLD_DEFAULT, "bql_lock_impl");
    if (!helper || !helper_vmrun || !cpu_loop_exit_noexc || !bql_lock_impl ||
        !dlsym(RTLD_DEFAULT, "current_cpu") || helper->func != (void *)helper_vmrun ||
        !disarm(dlsym(RTLD_DEFAULT, "cpu_clear_ignne"))) {
        fputs("lab: this build of QEMU cannot be mended: guests in the lab will hang or "
              "have a triple fault now and then (docs/lab.md)\n", stderr);
        return 0;
    }
    helper->func = (void *)vmrun;
    return 0;
}
