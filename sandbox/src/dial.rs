//! Connections to the guest's agent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flashpan_protocol::network::NotOpened;
use flashpan_protocol::supervisor::{Answer, Request};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::attach::{Attachment, unexpected};
use crate::driver::{Command, Ended};
use crate::error::{Error, Result};
use crate::forward_card::CardLink;
use crate::pump::lost;
use crate::shared::Shared;

/// What makes connections for a task that may outlive the handle of the VM, and
/// does not keep the VM alive.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    way: Way,
    shared: Arc<Shared>,
    ended: Ended,
}

/// Whom it asks.
#[derive(Debug, Clone)]
enum Way {
    Driver(mpsc::WeakSender<Command>),
    Supervisor(Attachment),
}

/// Both directions of a connection, and whether what was sent first was taken.
type Dialled = (OwnedReadHalf, OwnedWriteHalf, io::Result<()>);

impl Dialer {
    pub(crate) fn new(commands: &mpsc::Sender<Command>, shared: Arc<Shared>, ended: Ended) -> Self {
        Self {
            way: Way::Driver(commands.downgrade()),
            shared,
            ended,
        }
    }

    /// For a VM of another process.
    pub(crate) fn attached(attachment: Attachment, shared: Arc<Shared>, ended: Ended) -> Self {
        Self {
            way: Way::Supervisor(attachment),
            shared,
            ended,
        }
    }

    /// Connects to `port` of the guest's agent and sends it the frame `first`;
    /// whether that was taken is the last of the results.
    pub(crate) async fn dial(&self, port: u32, first: &[u8]) -> Result<Dialled> {
        if let Way::Supervisor(attachment) = &self.way {
            let mut asked = attachment.ask(&Request::Dial { port }).await?;
            match asked.answer().await? {
                Answer::Accepted => {}
                _ => return Err(unexpected()),
            }
            let (reader, mut writer) = asked.into_stream().into_split();
            let written = writer.write_all(first).await;
            return Ok((reader, writer, written));
        }
        let (ours, theirs) = UnixStream::pair().map_err(Error::host("make a guest connection"))?;
        let theirs: OwnedFd = theirs
            .into_std()
            .map_err(Error::host("make a guest connection"))?
            .into();
        let (reader, mut writer) = ours.into_split();
        let accepted = self.hand_over(port, theirs).await?;
        // The request is written while the guest is still accepting: it waits
        // in the socket, and that saves a wake-up.
        let (accepted, written) = tokio::join!(accepted, writer.write_all(first));
        match accepted {
            Ok(true) => {}
            Ok(false) => return Err(Error::AgentRefused { port }),
            Err(_) => return Err(lost(self.ended.clone()).await),
        }
        Ok((reader, writer, written))
    }

    /// Whether [`Self::open`] can lead anywhere: to a VM of this process, whose card is as
    /// fast as it can be.
    pub(crate) fn has_card(&self) -> bool {
        matches!(self.way, Way::Driver(_)) && self.shared.has_fast_card()
    }

    /// Connects to a TCP port of the guest's card.
    pub(crate) async fn open(&self, port: u16) -> Result<std::result::Result<CardLink, NotOpened>> {
        if self.shared.is_paused() {
            return Err(Error::Paused);
        }
        let (ours, theirs) = UnixStream::pair().map_err(Error::host("make a guest connection"))?;
        let theirs = theirs
            .into_std()
            .map_err(Error::host("make a guest connection"))?;
        let (reply, answer) = oneshot::channel();
        self.command(Command::Open {
            port,
            stream: ours,
            theirs: theirs.into(),
            reply,
        })
        .await?;
        match answer.await {
            Ok(answer) => Ok(answer.map(CardLink::new)),
            Err(_) => Err(lost(self.ended.clone()).await),
        }
    }

    /// Makes a stream socket the host end of a connection to `port` of the guest of
    /// this process; whether the guest accepts it is told later.
    pub(crate) async fn hand_over(
        &self,
        port: u32,
        stream: OwnedFd,
    ) -> Result<oneshot::Receiver<bool>> {
        if self.shared.is_paused() {
            return Err(Error::Paused);
        }
        let (reply, accepted) = oneshot::channel();
        self.command(Command::Connect {
            port,
            stream,
            reply,
        })
        .await?;
        Ok(accepted)
    }

    /// Asks the driver for something; a VM of another process has none here.
    pub(crate) async fn command(&self, command: Command) -> Result<()> {
        let commands = match &self.way {
            Way::Driver(commands) => commands.upgrade(),
            Way::Supervisor(_) => None,
        };
        let sent = match commands {
            Some(commands) => commands.send(command).await.is_ok(),
            None => false,
        };
        match (sent, &*self.ended.borrow()) {
            (true, _) => Ok(()),
            (false, Some(exit)) => Err(Error::ended(exit.reason.clone())),
            (false, None) => Err(Error::NotRunning),
        }
    }
}
