//! The ports by which a guest marks boot phases and ends its VM.

use flashpan_protocol::phase::{EXIT_PORT, ExitRequest, PHASE_PORT};

use super::PioDevice;

/// What a guest can report. Called from a vCPU thread: must not block.
pub trait GuestEvents: Send {
    /// The guest wrote `code` to the phase port. A guest may do so at any rate
    /// and with any code.
    fn phase(&mut self, code: u8);

    /// The guest asks for the end of its VM.
    fn exit(&mut self, request: ExitRequest);
}

/// The phase port and the exit port. Accesses that are not one byte wide and
/// exit codes that do not exist are ignored; reads give 0. There is no state
/// to be saved.
#[derive(Debug)]
pub struct Ports<E> {
    events: E,
}

impl<E: GuestEvents> Ports<E> {
    /// First port.
    pub const BASE: u64 = PHASE_PORT as u64;

    /// Number of ports, from the phase port to the exit port.
    pub const SIZE: u64 = EXIT_OFFSET + 1;

    /// Ports that report to `events`.
    #[must_use]
    pub fn new(events: E) -> Self {
        Self { events }
    }

    /// Whom the ports report to.
    pub fn events(&self) -> &E {
        &self.events
    }

    /// As [`Self::events`], to take from it what was reported.
    pub fn events_mut(&mut self) -> &mut E {
        &mut self.events
    }
}

const PHASE_OFFSET: u64 = 0;
const EXIT_OFFSET: u64 = (EXIT_PORT - PHASE_PORT) as u64;

impl<E: GuestEvents> PioDevice for Ports<E> {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (PHASE_OFFSET, [code]) => self.events.phase(*code),
            (EXIT_OFFSET, [code]) => {
                if let Some(request) = ExitRequest::from_code(*code) {
                    self.events.exit(request);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Seen {
        phases: Vec<u8>,
        exits: Vec<ExitRequest>,
    }

    impl GuestEvents for Seen {
        fn phase(&mut self, code: u8) {
            self.phases.push(code);
        }

        fn exit(&mut self, request: ExitRequest) {
            self.exits.push(request);
        }
    }

    #[test]
    fn phases_and_exits_are_reported() {
        let mut ports = Ports::new(Seen::default());
        for code in [0x40, 0x41, 0x00, 0xff] {
            ports.write(PHASE_OFFSET, &[code]);
        }
        ports.write(EXIT_OFFSET, &[ExitRequest::Reboot.code()]);
        ports.write(EXIT_OFFSET, &[ExitRequest::PowerOff.code()]);
        assert_eq!(ports.events().phases, [0x40, 0x41, 0x00, 0xff]);
        let exits = [ExitRequest::Reboot, ExitRequest::PowerOff];
        assert_eq!(ports.events().exits, exits);
    }

    #[test]
    fn other_accesses_are_ignored() {
        let mut ports = Ports::new(Seen::default());
        for offset in [0, 1, 2, 3, 4, 5, u64::MAX] {
            for data in [&[][..], &[1, 1], &[1, 1, 1, 1], &[1; 64]] {
                ports.write(offset, data);
            }
        }
        ports.write(1, &[1]);
        ports.write(EXIT_OFFSET, &[0]);
        ports.write(EXIT_OFFSET, &[0xff]);
        assert_eq!(*ports.events(), Seen::default());

        let mut data = [0xff; 4];
        ports.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
