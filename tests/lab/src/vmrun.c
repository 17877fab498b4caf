/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later
 *
 * A plugin for QEMU that mends its emulation of the VMRUN instruction.
 *
 * With an external interrupt in the VMCB's EVENTINJ field, helper_vmrun() sets
 * exception_index to the interrupt's vector, delivers the interrupt, and leaves
 * exception_index as it is. If the next thing that makes the CPU leave its loop is
 * not a VM exit (a timer that is due, another thread that wants the lock), the main
 * loop takes it for an exception that is still to be delivered, and delivers the
 * interrupt again: into its own handler, and whether interrupts are enabled or not.
 * The guest then waits for a lock that it holds itself, or has a triple fault.
 *
 * Here a VMRUN that comes back to its caller ends with the loop being left without
 * an exception.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))

/* How QEMU's translator calls a helper; the function comes first. */
struct helper_info {
    void *func;
};

EXPORT int qemu_plugin_version = 4;

static void (*helper_vmrun)(void *env, int aflag, int next_eip_addend);
static void (*cpu_loop_exit_noexc)(void *cpu);

static void vmrun(void *env, int aflag, int next_eip_addend)
{
    /* A variable of the thread, which has one address in each. */
    static __thread void **current_cpu;

    if (!current_cpu) {
        current_cpu = dlsym(RTLD_DEFAULT, "current_cpu");
    }
    helper_vmrun(env, aflag, next_eip_addend);
    cpu_loop_exit_noexc(*current_cpu);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    struct helper_info *helper = dlsym(RTLD_DEFAULT, "helper_info_vmrun");

    (void)id, (void)info, (void)argc, (void)argv;
    helper_vmrun = dlsym(RTLD_DEFAULT, "helper_vmrun");
    cpu_loop_exit_noexc = dlsym(RTLD_DEFAULT, "cpu_loop_exit_noexc");
    if (!helper || !helper_vmrun || !cpu_loop_exit_noexc ||
        !dlsym(RTLD_DEFAULT, "current_cpu") || helper->func != (void *)helper_vmrun) {
        fputs("lab: this build of QEMU cannot be mended: guests in the lab will hang or "
              "have a triple fault now and then (docs/lab.md)\n", stderr);
        return 0;
    }
    helper->func = (void *)vmrun;
    return 0;
}
