//! A command to the supervisor of a VM, over the Unix stream socket in the VM's
//! directory, in the framing of [`crate::frame`].
//!
//! A connection carries one request. The client sends [`Request::Hello`] and the
//! request, without waiting in between; the supervisor answers
//! [`Answer::Hello`], whatever the client's version is, and if they agree the
//! answer to the request. A client that closes its connection takes a
//! [`Request::Wait`] back and nothing else.
//!
//! **After [`Answer::Accepted`] to [`Request::Dial`]** the connection is the host
//! end of a stream to the guest, and nothing of this protocol comes on it any
//! more: the supervisor hands the socket itself to the VMM, so what flows is held
//! back by vsock's own credit and copied nowhere. The client sends nothing between
//! its request and that answer. A guest that refuses closes the stream at once.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::agent::ExecRequest;
use crate::control::Stats;

/// Version of this protocol; both hellos carry it and must agree.
pub const VERSION: u32 = 2;

/// First bytes of a client's hello, to tell a stray connection from a client.
pub const MAGIC: [u8; 8] = *b"flashsup";

/// Longest request: that to run a program is the longest.
pub const MAX_REQUEST: usize = crate::agent::MAX_FRAME + 64;

/// Longest answer: what a guest may reach, [`MAX_PATTERNS`] of each kind.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Most patterns that are allowed, that are denied, and rules.
pub const MAX_PATTERNS: usize = 1024;

/// Longest text in an answer that is a document ([`Answer::Ended`]), in bytes.
pub const MAX_DOCUMENT: usize = 8 * 1024;

/// From a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first message.
    Hello {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`VERSION`].
        version: u32,
    },
    /// What the VM does. Answered by [`Answer::Status`].
    Status,
    /// Connect this connection to a port of the guest. Answered by
    /// [`Answer::Accepted`] or [`Answer::Refused`].
    Dial {
        /// Port in the guest.
        port: u32,
    },
    /// Run a program that nobody watches; its output is thrown away. Answered by
    /// [`Answer::Started`] or [`Answer::Refused`].
    Spawn(Box<ExecRequest>),
    /// End the VM in order: SIGTERM to its programs, SIGKILL after the grace
    /// period, sync, unmount, power off. Answered by [`Answer::Ended`].
    Stop {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u32,
        /// Milliseconds after that, until the VM is killed.
        within_ms: u32,
    },
    /// End the VM now. Answered by [`Answer::Ended`].
    Kill,
    /// Let the VM stand still. Answered by [`Answer::Done`] or
    /// [`Answer::Refused`].
    Pause,
    /// Let it go on. Answered as [`Request::Pause`].
    Resume,
    /// Wait for the end of the VM. Answered by [`Answer::Ended`].
    Wait,
    /// Wait for the end of the VM's own command, or of the VM. Answered by
    /// [`Answer::CommandEnded`], or by [`Answer::Ended`] if the VM has no command
    /// or ended first.
    WaitCommand,
    /// What the VM uses. Answered by [`Answer::Usage`] or [`Answer::Refused`].
    Usage,
    /// Show or change what the guest may reach. Answered by [`Answer::Policy`],
    /// [`Answer::Explained`] or [`Answer::Refused`].
    Policy(PolicyRequest),
}

/// What is to be done with what a guest may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyRequest {
    /// Show it.
    Show,
    /// Allow hosts.
    Allow(Vec<String>),
    /// Take back what was allowed.
    Disallow(Vec<String>),
    /// What would become of this host or URL.
    Explain {
        /// The method of a request.
        method: String,
        /// A host, with or without a port, or a URL.
        target: String,
    },
    /// Give a secret another value. Answered by [`Answer::Done`].
    SetSecret {
        /// Its name.
        name: String,
        /// The value.
        value: Hidden,
    },
    /// Take a secret's value away. Answered by [`Answer::Done`].
    RevokeSecret {
        /// Its name.
        name: String,
    },
}

/// A text that is not shown, and cleared from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub Zeroizing<String>);

impl Serialize for Hidden {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// The answer to [`Request::Status`].
    Status(Activity),
    /// From here on this connection leads to the guest.
    Accepted,
    /// A program was started.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It was done.
    Done,
    /// It was not done.
    Refused(Refusal),
    /// The VM has ended, and nothing of it is left but its directory (if that is
    /// to stay).
    Ended {
        /// The text of its `exit.json`; at most [`MAX_DOCUMENT`] bytes.
        record: String,
    },
    /// The VM's own command has ended.
    CommandEnded(crate::agent::ExitStatus),
    /// The answer to [`Request::Usage`].
    Usage(Box<Usage>),
    /// The answer to [`Request::Policy`].
    Policy(Box<Reachable>),
    /// The answer to [`PolicyRequest::Explain`].
    Explained(Box<Explained>),
}

/// What a guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachable {
    /// Whether it has a network at all.
    pub has_network: bool,
    /// Whether it may reach what nothing names.
    pub open: bool,
    /// Whether it may reach addresses that are not of the internet.
    pub private: bool,
    /// What is allowed.
    pub allowed: Vec<String>,
    /// What is denied.
    pub denied: Vec<String>,
    /// Rules for requests, in their order.
    pub rules: Vec<String>,
    /// What a request to change it has changed.
    pub changed: Vec<String>,
}

/// What would become of a connection or request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What was asked about, in its one form.
    pub target: String,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The pattern or rule that decides; none if it is that nothing allows it, or that
    /// everything is allowed.
    pub rule: Option<String>,
    /// Why not: a stable word. Of what is allowed only `name_server`: it is neither a rule nor
    /// an open network that allows it, but that it is answered here.
    pub code: Option<String>,
    /// What can be done about it, or what becomes of it.
    pub hint: Option<String>,
    /// Whether requests to this host are looked into.
    pub inspected: bool,
}

/// What a supervised VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// It boots.
    Starting,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// It shuts down.
    Stopping,
}

/// Why a request was not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The class.
    pub kind: RefusalKind,
    /// One line.
    pub message: String,
}

/// Classes of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The VM boots still.
    Starting,
    /// The VM is paused.
    Paused,
    /// The VM is not paused.
    NotPaused,
    /// The VM ends.
    Ending,
    /// Too many clients.
    Busy,
    /// The request makes no sense.
    BadRequest,
    /// A program was not started: there is none of that name.
    ProgramNotFound,
    /// A program was not started: it cannot be executed.
    ProgramNotExecutable,
    /// The guest or the VMM failed to do it.
    Failed,
}

/// What a VM uses of its host, since it was started where that matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Nanoseconds since the VM was started.
    pub uptime_ns: u64,
    /// CPU time of the VMM process and so of the guest, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory of the VMM process, guest memory included, in bytes.
    pub resident_bytes: u64,
    /// Guest memory, in bytes; 0 if it is not known.
    pub memory_bytes: u64,
    /// Number of vCPUs; 0 if it is not known.
    pub vcpus: u32,
    /// Bytes that the VMM read from storage; `None` where the host does not say.
    pub read_bytes: Option<u64>,
    /// Bytes that the VMM caused to be written to storage, likewise.
    pub written_bytes: Option<u64>,
    /// The VMM's own counters.
    pub vmm: Stats,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{ExitCount, FullDisk, MAX_DISKS};
    use crate::frame;

    #[test]
    fn a_hidden_text_is_sent_and_not_shown() {
        let hidden = Hidden(Zeroizing::new("hunter2".to_owned()));
        assert_eq!(format!("{hidden:?}"), "(hidden)");
        let request = Request::Policy(PolicyRequest::SetSecret {
            name: "K".to_owned(),
            value: hidden,
        });
        assert!(!format!("{request:?}").contains("hunter2"));
        let bytes = postcard::to_stdvec(&request).unwrap();
        assert_eq!(postcard::from_bytes::<Request>(&bytes).unwrap(), request);
    }

    #[test]
    fn the_longest_answers_fit() {
        let record = "x".repeat(MAX_DOCUMENT);
        assert!(frame::encode(&Answer::Ended { record }, MAX_ANSWER).is_ok());
        // As many counters as a packet of the control protocol carries.
        let mut vmm = Stats {
            full_disks: vec![
                FullDisk {
                    disk: u8::MAX,
                    failures: u64::MAX
                };
                MAX_DISKS
            ],
            ..Stats::default()
        };
        let count = ExitCount {
            reason: "r".repeat(40),
            detail: "d".repeat(60),
            count: u64::MAX,
        };
        vmm.exits = vec![count; 512];
        assert!(crate::control::encode(&vmm).is_ok());
        let usage = Usage {
            vmm,
            ..Usage::default()
        };
        assert!(frame::encode(&Answer::Usage(Box::new(usage)), MAX_ANSWER).is_ok());
    }
}
