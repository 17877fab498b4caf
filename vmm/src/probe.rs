//! Does KVM on this host really run guests?
//!
//! A KVM device that opens and answers is not enough: there are paravirtual
//! ones that run a few instructions and then fail at the first that they have
//! to emulate. So a tiny guest does what every kernel does early: it enters
//! 64-bit mode through the same tables as a kernel, uses an I/O port, reads its
//! local APIC, and reads and writes a device's registers by instructions of
//! several shapes.

use std::sync::mpsc::channel;
use std::time::Duration;

use flashpan_protocol::control::BootProtocol;
use flashpan_protocol::phase::{EXIT_PORT, PHASE_PORT};
use kvm_ioctls::VcpuExit;

use crate::boot::{Entry, write};
use crate::cpu::{cpuid, entry};
use crate::error::BootError;
use crate::kvm::{Host, KvmVm};
use crate::layout::{ENTRY_STUB, MMIO_BASE};
use crate::memory::{GuestMemory, MIN_MIB};

/// How long the tiny guest may take; it needs microseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Most exits before the guest counts as lost; it makes eight.
const MAX_EXITS: usize = 64;

/// What reading the device's register gives.
const ANSWER: u32 = 0x5aa5_1234;

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether KVM could be opened and has what a VMM needs.
    pub kvm: bool,
    /// Whether the tiny guest ran to its end with the right results.
    pub guest: bool,
    /// What went wrong, or what was tried; one line.
    pub detail: String,
}

impl Report {
    /// Whether VMs can be run.
    #[must_use]
    pub fn works(&self) -> bool {
        self.kvm && self.guest
    }

    /// The report as one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let detail: String = self
            .detail
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        format!(
            r#"{{"kvm":{},"guest":{},"detail":"{detail}"}}"#,
            self.kvm, self.guest
        )
    }
}

/// Tries it, within a deadline.
#[must_use]
pub fn run() -> Report {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            return Report {
                kvm: false,
                guest: false,
                detail: error.message,
            };
        }
    };
    let (sender, receiver) = channel();
    // A guest that hangs keeps its thread; the process ends right after.
    std::thread::spawn(move || sender.send(try_guest(host)));
    let detail = match receiver.recv_timeout(DEADLINE) {
        Ok(Ok(())) => {
            let detail = "a 64-bit guest ran".to_owned();
            return Report {
                kvm: true,
                guest: true,
                detail,
            };
        }
        Ok(Err(why)) => why,
        Err(_) => format!("a tiny guest did not end within {} s", DEADLINE.as_secs()),
    };
    Report {
        kvm: true,
        guest: false,
        detail,
    }
}

/// Runs the tiny guest and checks each of its exits.
fn try_guest(host: Host) -> Result<(), String> {
    let text = |error: BootError| error.message;
    let memory = GuestMemory::new(MIN_MIB, false).map_err(text)?;
    let Host { kvm, .. } = host;
    let kvm = KvmVm::new(kvm, &memory).map_err(text)?;
    entry::write_tables(memory.ram(), BootProtocol::Linux64).map_err(text)?;
    write(memory.ram(), ENTRY_STUB, &guest_code(), "the tiny guest").map_err(text)?;
    let mut vcpu = kvm.create_vcpu(0).map_err(text)?;
    let supported = cpuid::supported(kvm.kvm()).map_err(text)?;
    let cpuid = cpuid::for_vcpu(&supported, 0, 1).map_err(text)?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(|e| format!("KVM refused the CPUID: {e}"))?;
    let start = Entry {
        address: ENTRY_STUB,
        protocol: BootProtocol::Linux64,
    };
    entry::set_registers(&vcpu, 0, start).map_err(text)?;
    for _ in 0..MAX_EXITS {
        match vcpu
            .run()
            .map_err(|e| format!("KVM could not run a tiny guest: {e}"))?
        {
            VcpuExit::MmioRead(MMIO_BASE, data) => {
                for (to, from) in data.iter_mut().zip(ANSWER.to_le_bytes()) {
                    *to = from;
                }
            }
            VcpuExit::MmioWrite(MMIO_BASE, _) | VcpuExit::IoOut(PHASE_PORT, _) => {}
            VcpuExit::IoOut(EXIT_PORT, [0]) => return Ok(()),
            VcpuExit::IoOut(EXIT_PORT, _) => {
                return Err("a tiny guest read wrong values from a device".to_owned());
            }
            VcpuExit::InternalError => {
                return Err("KVM could not emulate a guest's access to a device: \
                            it is not a full KVM (a paravirtual one?)"
                    .to_owned());
            }
            VcpuExit::Shutdown => {
                return Err("a tiny 64-bit guest crashed: this is not a full KVM \
                            (a paravirtual or emulated one?)"
                    .to_owned());
            }
            other => return Err(format!("a tiny guest ended with {other:?}")),
        }
    }
    Err("a tiny guest ran in circles".to_owned())
}

/// The tiny guest: 64-bit code at [`ENTRY_STUB`], entered like a kernel.
fn guest_code() -> Vec<u8> {
    let mut code = Vec::new();
    let [phase_low, phase_high] = PHASE_PORT.to_le_bytes();
    let [exit_low, exit_high] = EXIT_PORT.to_le_bytes();
    code.extend([0x66, 0xba, phase_low, phase_high, 0xee]); // mov dx, PHASE_PORT; out dx, al
    code.extend([0x48, 0xbf]); // mov rdi, MMIO_BASE
    code.extend(MMIO_BASE.to_le_bytes());
    // A gigabyte is mapped; map the device's page by the same directory: reuse
    // the entry for the first 2 MiB of the fourth gigabyte through CR3's PDPT.
    code.extend(map_device());
    code.extend([0x89, 0x07]); // mov [rdi], eax
    code.extend([0x8b, 0x1f]); // mov ebx, [rdi]
    code.extend([0x0f, 0xb7, 0x0f]); // movzx ecx, word [rdi]
    code.extend([0xc7, 0x07, 1, 0, 0, 0]); // mov dword [rdi], 1
    code.extend([0x44, 0x8b, 0x07]); // mov r8d, [rdi]
    code.extend([0x31, 0xc0]); // xor eax, eax
    code.extend([0x81, 0xfb]); // cmp ebx, ANSWER
    code.extend(ANSWER.to_le_bytes());
    code.extend([0x0f, 0x95, 0xc0]); // setne al
    code.extend([0x41, 0x39, 0xd8]); // cmp r8d, ebx
    code.extend([0x0f, 0x95, 0xc4]); // setne ah
    code.extend([0x08, 0xe0]); // or al, ah
    code.extend([0x66, 0xba, exit_low, exit_high, 0xee]); // mov dx, EXIT_PORT; out dx, al
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back
    code
}

/// Code that maps the gigabyte at 3 GiB, where the devices are, by a page of
/// 1 GiB; keeps RDI.
fn map_device() -> Vec<u8> {
    const PDPT: u64 = crate::layout::PAGE_TABLES + 0x1000;
    const GIB_PAGE: u64 = (3 << 30) | 0x83;
    let mut code = vec![0x48, 0xb8]; // mov rax, GIB_PAGE
    code.extend(GIB_PAGE.to_le_bytes());
    code.extend([0x48, 0xbb]); // mov rbx, address of PDPT entry 3
    code.extend((PDPT + 3 * 8).to_le_bytes());
    code.extend([0x48, 0x89, 0x03]); // mov [rbx], rax
    code.extend([0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]); // mov rax, cr3; mov cr3, rax
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_json_whatever_the_detail() {
        let report = Report {
            kvm: true,
            guest: false,
            detail: "a \"quoted\"\nline \\".to_owned(),
        };
        assert_eq!(
            report.json(),
            r#"{"kvm":true,"guest":false,"detail":"a \"quoted\" line \\"}"#
        );
    }
}
