//! Connections to the guest's agent.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Command, Ended};
use crate::error::{Error, Result};
use crate::pump::lost;

/// What makes connections for a task that may outlive the handle of the VM, and
/// does not keep the VM alive.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    commands: mpsc::WeakSender<Command>,
    ended: Ended,
}

impl Dialer {
    pub(crate) fn new(commands: &mpsc::Sender<Command>, ended: Ended) -> Self {
        Self {
            commands: commands.downgrade(),
            ended,
        }
    }

    /// Connects to `port` of the guest's agent and sends it the frame `first`;
    /// whether that was taken is the last of the results.
    pub(crate) async fn dial(
        &self,
        port: u32,
        first: &[u8],
    ) -> Result<(OwnedReadHalf, OwnedWriteHalf, io::Result<()>)> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::host("make a guest connection"))?;
        let theirs: OwnedFd = theirs
            .into_std()
            .map_err(Error::host("make a guest connection"))?
            .into();
        let (reader, mut writer) = ours.into_split();
        let (reply, accepted) = oneshot::channel();
        self.command(Command::Connect {
            port,
            stream: theirs,
            reply,
        })
        .await?;
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

    /// Asks the driver for something.
    pub(crate) async fn command(&self, command: Command) -> Result<()> {
        let sent = match self.commands.upgrade() {
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
