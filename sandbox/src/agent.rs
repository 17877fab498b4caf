//! The boot connection: the guest's PID 1 introduces itself, is told what to
//! be, and stays on the line for the life of the VM.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use flashpan_protocol::agent::{
    EVENT_ARGV, EVENT_DIRECTORY, GuestConfig, GuestMessage, HostMessage, MAGIC, MAX_FRAME, VERSION,
};
use flashpan_protocol::frame;
use flashpan_protocol::phase::Phase;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::{Error, Result};
use crate::exit::GuestWord;
use crate::frames::FrameReader;
use crate::shared::Shared;
use crate::text::one_line;

/// Longest message that PID 1 may send, in bytes: the start of a program is the
/// longest, with its arguments ([`EVENT_ARGV`]) and its directory.
const MAX_GUEST_FRAME: usize = 16 * 1024;
const _: () = assert!(2 * EVENT_ARGV + EVENT_DIRECTORY + 64 < MAX_GUEST_FRAME);

/// Longest text of a guest that is kept, in characters.
const QUOTED: usize = 300;

/// The warning when PID 1 was asked for the end by a program.
const ASKED: &str = "a program powers the guest off or restarts it, which ends all programs";

/// Who is to blame in error messages.
const PEER: &str = "the guest's init";

/// A guest that is ready.
#[derive(Debug)]
pub(crate) struct BootLink {
    writer: OwnedWriteHalf,
    reader: FrameReader<OwnedReadHalf>,
    shared: Arc<Shared>,
}

impl BootLink {
    /// Greets PID 1, configures it and waits until it is ready. `Ok(None)` if
    /// the guest closed the connection, which means that it is going down; the
    /// caller sets the deadline.
    pub(crate) async fn establish(
        stream: OwnedFd,
        config: GuestConfig,
        shared: Arc<Shared>,
    ) -> Result<Option<Self>> {
        let stream = stream_from(stream)?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = FrameReader::new(reader, MAX_GUEST_FRAME, MAX_GUEST_FRAME);
        match next(&mut reader).await? {
            Some(GuestMessage::Hello {
                magic: MAGIC,
                version: VERSION,
                ..
            }) => {}
            Some(GuestMessage::Hello {
                magic: MAGIC,
                version,
                ..
            }) => {
                return Err(Error::Incompatible {
                    peer: PEER,
                    theirs: version,
                    ours: VERSION,
                });
            }
            Some(_) => return Err(broken("it did not begin with a hello")),
            None => return Ok(None),
        }
        shared.mark(Phase::AgentConnected);

        let mut answer = frame::encode(&HostMessage::Hello { version: VERSION }, MAX_FRAME)?;
        let configure = HostMessage::Configure(Box::new(config));
        answer.append(&mut frame::encode(&configure, MAX_FRAME)?);
        if writer.write_all(&answer).await.is_err() {
            // The reason, if there is one, can still be read below.
        }
        loop {
            match next(&mut reader).await? {
                Some(GuestMessage::Ready) => break,
                Some(GuestMessage::Failed { what, why, errno }) => {
                    let (what, why) = (one_line(&what, QUOTED), one_line(&why, QUOTED));
                    return Err(Error::GuestSetup { what, why, errno });
                }
                Some(GuestMessage::Warning(text)) => shared.warn(one_line(&text, QUOTED)),
                Some(GuestMessage::ShuttingDown { .. }) | None => return Ok(None),
                Some(GuestMessage::Hello { .. }) => return Err(broken("a second hello")),
                Some(
                    GuestMessage::ProgramStarted(_)
                    | GuestMessage::ProgramEnded(_)
                    | GuestMessage::ProgramsLost(_),
                ) => return Err(broken("a program before it was ready")),
            }
        }
        shared.mark(Phase::InitReady);
        Ok(Some(Self {
            writer,
            reader,
            shared,
        }))
    }

    /// Splits the link into what sends requests and a task that listens until
    /// the guest goes.
    pub(crate) fn serve(self) -> (OwnedWriteHalf, impl Future<Output = ()> + Send + 'static) {
        let Self {
            writer,
            mut reader,
            shared,
        } = self;
        let listening = shared.listen();
        let listen = async move {
            // Any end of this connection is followed by the end of the VM,
            // which carries the reason.
            while let Ok(Some(message)) = next(&mut reader).await {
                match message {
                    GuestMessage::Warning(text) => shared.warn(one_line(&text, QUOTED)),
                    GuestMessage::ShuttingDown { reboot } => {
                        // Programs that end of it may still report that they
                        // did, and nobody would know why.
                        shared.warn(ASKED.to_owned());
                        shared.note(GuestWord::ShuttingDown { reboot });
                    }
                    GuestMessage::Failed { what, why, .. } => shared.note(GuestWord::Failed {
                        what: one_line(&what, QUOTED),
                        why: one_line(&why, QUOTED),
                    }),
                    GuestMessage::ProgramStarted(program) => shared.events.started(*program),
                    GuestMessage::ProgramEnded(program) => shared.events.ended(program),
                    GuestMessage::ProgramsLost(number) => shared.events.lost(number),
                    GuestMessage::Hello { .. } | GuestMessage::Ready => {}
                }
            }
            drop(listening);
        };
        (writer, listen)
    }
}

/// A stream descriptor that came from, or goes with, the control socket.
pub(crate) fn stream_from(fd: OwnedFd) -> Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream
        .set_nonblocking(true)
        .map_err(Error::host("set up a guest connection"))?;
    UnixStream::from_std(stream).map_err(Error::host("watch a guest connection"))
}

/// The next message; a connection that breaks is one that ends.
async fn next(reader: &mut FrameReader<OwnedReadHalf>) -> Result<Option<GuestMessage>> {
    match reader.next().await {
        Ok(message) => Ok(message),
        Err(frame::FrameError::Io(_) | frame::FrameError::Truncated) => Ok(None),
        Err(e) => Err(broken(&e.to_string())),
    }
}

fn broken(why: &str) -> Error {
    Error::Protocol {
        peer: PEER,
        why: why.to_owned(),
    }
}
