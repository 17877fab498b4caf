//! The PC's old devices at their I/O ports: a serial port, the reset line of a
//! keyboard controller, and our own phase and exit ports.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use flashpan_devices::bus::Bus;
use flashpan_devices::legacy::{
    GuestEvents, I8042, I8042_BASE, I8042_SIZE, PioDevice, Ports, SERIAL_BASE, SERIAL_IRQ,
    SERIAL_SIZE, SavedSerial, SerialMetrics, SerialPort,
};
use flashpan_devices::state::RestoreError;
use flashpan_protocol::control::ExitReason;
use flashpan_protocol::phase::{ExitRequest, FIRST_USER_CODE, Phase};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::error::BootError;
use crate::kvm::KvmVm;
use crate::vm::{Observer, VmEvent, clone, eventfd, lock, now_ns, stamp};

/// The state of the old devices; only the serial port has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LegacyState {
    serial: SavedSerial,
}

/// Where console output goes.
enum Sink {
    File(File),
    Nowhere,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Nowhere => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes what the guest marks on to the observer, and keeps its request to
/// end until the vCPU thread asks for it.
struct Marks {
    observer: Arc<dyn Observer>,
    /// Our own codes that were marked: each is passed on once, since a boot has
    /// each phase once and a guest could mark one without end.
    marked: u128,
    exit: Option<ExitRequest>,
}

impl GuestEvents for Marks {
    fn phase(&mut self, code: u8) {
        if let Some(phase) = Phase::from_code(code) {
            let bit = 1_u128.checked_shl(u32::from(code)).unwrap_or(0);
            if self.marked & bit == 0 {
                self.marked |= bit;
                self.observer.event(VmEvent::Phase(stamp(phase)));
            }
        } else if code >= FIRST_USER_CODE {
            self.observer.event(VmEvent::UserPhase {
                code,
                at_ns: now_ns(),
            });
        }
    }

    fn exit(&mut self, request: ExitRequest) {
        self.exit = Some(request);
    }
}

/// A device on the bus of ports.
type Shared = Arc<Mutex<dyn PioDevice>>;

/// The old devices and the ports they answer at.
pub(crate) struct Legacy {
    ports: Bus<Shared>,
    serial: Arc<Mutex<SerialPort<Sink>>>,
    serial_metrics: Arc<SerialMetrics>,
    marks: Arc<Mutex<Ports<Marks>>>,
    reset: EventFd,
}

impl Legacy {
    pub(crate) fn new(
        console: Option<File>,
        kvm: &KvmVm,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, BootError> {
        let line = eventfd()?;
        kvm.bind_interrupt(&line, SERIAL_IRQ)?;
        let sink = console.map_or(Sink::Nowhere, Sink::File);
        let serial = SerialPort::new(line, sink, None);
        let serial_metrics = serial.metrics();
        let serial = Arc::new(Mutex::new(serial));
        let reset = eventfd()?;
        let controller = Arc::new(Mutex::new(I8042::new(clone(&reset)?)));
        let marks = Arc::new(Mutex::new(Ports::new(Marks {
            observer,
            marked: 0,
            exit: None,
        })));
        let mut ports: Bus<Shared> = Bus::new();
        let devices: [(u64, u64, Shared); 3] = [
            (SERIAL_BASE, SERIAL_SIZE, serial.clone()),
            (I8042_BASE, I8042_SIZE, controller),
            (Ports::<Marks>::BASE, Ports::<Marks>::SIZE, marks.clone()),
        ];
        for (base, len, device) in devices {
            ports
                .insert(base, len, device)
                .map_err(|e| BootError::host("lay out the I/O ports", &io::Error::other(e)))?;
        }
        Ok(Self {
            ports,
            serial,
            serial_metrics,
            marks,
            reset,
        })
    }

    /// The guest reads a port. Where nothing is, the bus floats high.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        match self.ports.lookup(u64::from(port)) {
            Some((offset, device)) => lock(device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes a port; some such writes end the machine.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<ExitReason> {
        let (offset, device) = self.ports.lookup(u64::from(port))?;
        lock(device).write(offset, data);
        match u64::from(port) {
            I8042_BASE => self.reset.read().is_ok().then_some(ExitReason::Reset),
            port if port >= Ports::<Marks>::BASE => lock(&self.marks)
                .events_mut()
                .exit
                .take()
                .map(ExitReason::Requested),
            _ => None,
        }
    }

    /// Writes out what the guest printed last.
    pub(crate) fn flush(&self) {
        lock(&self.serial).flush();
    }

    pub(crate) fn console_dropped(&self) -> u64 {
        self.serial_metrics.dropped()
    }

    pub(crate) fn save(&self) -> LegacyState {
        LegacyState {
            serial: lock(&self.serial).save(),
        }
    }

    pub(crate) fn restore(&self, state: &LegacyState) -> Result<(), RestoreError> {
        lock(&self.serial).restore(&state.serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashpan_protocol::phase::{CODE_INIT_READY, CODE_KERNEL_ENTRY};

    #[derive(Default)]
    struct Seen(Mutex<Vec<VmEvent>>);

    impl Observer for Seen {
        fn event(&self, event: VmEvent) {
            lock(&self.0).push(event);
        }
    }

    /// A guest that marks one of our phases again and again tells of it once;
    /// its own codes all arrive.
    #[test]
    fn a_phase_is_passed_on_once() {
        let seen = Arc::new(Seen::default());
        let mut marks = Marks {
            observer: seen.clone(),
            marked: 0,
            exit: None,
        };
        for _ in 0..1000 {
            marks.phase(CODE_KERNEL_ENTRY);
            marks.phase(CODE_INIT_READY);
        }
        marks.phase(FIRST_USER_CODE);
        marks.phase(FIRST_USER_CODE);
        let seen = std::mem::take(&mut *lock(&seen.0));
        let [VmEvent::Phase(entry), VmEvent::Phase(ready), own @ ..] = seen.as_slice() else {
            panic!("{seen:?}");
        };
        assert_eq!(entry.phase, Phase::KernelEntry);
        assert_eq!(ready.phase, Phase::InitReady);
        assert!(
            matches!(own, [VmEvent::UserPhase { .. }, VmEvent::UserPhase { .. }]),
            "{own:?}"
        );
    }
}
