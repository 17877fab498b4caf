//! Connections to TCP ports of the guest's card, as the driver knows them and as it tells of
//! them.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;

use flashpan_protocol::network::{End, NotOpened};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// The answer to the wish for a connection.
pub(crate) type Reply = oneshot::Sender<Result<OpenedFlow, NotOpened>>;

/// A connection that the guest has accepted. Dropping it resets what is left of it.
#[derive(Debug)]
pub(crate) struct OpenedFlow {
    id: u64,
    /// This process' end; none when it was dropped.
    stream: Option<UnixStream>,
    /// The guest's direction has ended in order; an error if otherwise.
    pub(crate) finished: oneshot::Receiver<()>,
    /// Both have ended, and how; an error if the VM did.
    pub(crate) ended: oneshot::Receiver<End>,
    closing: mpsc::UnboundedSender<(u64, UnixStream)>,
}

impl OpenedFlow {
    /// This process' end.
    pub(crate) fn stream(&mut self) -> io::Result<Pin<&mut UnixStream>> {
        let stream = self.stream.as_mut().map(Pin::new);
        stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for OpenedFlow {
    /// The stream stays open until the VMM has ended the connection: its end would be told
    /// to the guest as one in order.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            // Nobody is there to be told if the VM has ended.
            let _ = self.closing.send((self.id, stream));
        }
    }
}

/// A connection of which the driver tells.
#[derive(Debug)]
struct Open {
    /// Who is told of the first end, until that was done.
    finished: Option<oneshot::Sender<()>>,
    ended: oneshot::Sender<End>,
    /// Nobody has it any more, and it is being reset.
    closing: Option<UnixStream>,
}

/// All that were asked for, and all that there are.
#[derive(Debug)]
pub(crate) struct OpenedFlows {
    asked: HashMap<u64, (UnixStream, Reply)>,
    /// By the VMM's number.
    open: HashMap<u64, Open>,
    closing: mpsc::UnboundedSender<(u64, UnixStream)>,
    closings: mpsc::UnboundedReceiver<(u64, UnixStream)>,
}

impl OpenedFlows {
    pub(crate) fn new() -> Self {
        let (closing, closings) = mpsc::unbounded_channel();
        Self {
            asked: HashMap::new(),
            open: HashMap::new(),
            closing,
            closings,
        }
    }

    /// The VMM is asked for one, by this number, and has the other end of `stream`.
    pub(crate) fn ask(&mut self, request: u64, stream: UnixStream, reply: Reply) {
        self.asked.insert(request, (stream, reply));
    }

    /// What became of it; false if nobody asked.
    pub(crate) fn answered(&mut self, request: u64, answer: Result<u64, NotOpened>) -> bool {
        let Some((stream, reply)) = self.asked.remove(&request) else {
            return false;
        };
        let opened = answer.map(|id| {
            let (finished_sender, finished) = oneshot::channel();
            let (ended_sender, ended) = oneshot::channel();
            let open = Open {
                finished: Some(finished_sender),
                ended: ended_sender,
                closing: None,
            };
            self.open.insert(id, open);
            OpenedFlow {
                id,
                stream: Some(stream),
                finished,
                ended,
                closing: self.closing.clone(),
            }
        });
        // Of one who has given up, it is dropped here.
        let _ = reply.send(opened);
        true
    }

    /// The guest sends no more in one.
    pub(crate) fn finished(&mut self, id: u64) {
        let finished = self.open.get_mut(&id).and_then(|open| open.finished.take());
        // Whoever had it may have given up.
        let _ = finished.map(|told| told.send(()));
    }

    /// One is over; false if there is none of this number.
    pub(crate) fn ended(&mut self, id: u64, how: End) -> bool {
        let Some(open) = self.open.remove(&id) else {
            return false;
        };
        if how == End::Closed {
            let _ = open.finished.map(|told| told.send(()));
        }
        let _ = open.ended.send(how);
        true
    }

    /// The number of one that is to be reset. Cancel safe.
    pub(crate) async fn next_to_close(&mut self) -> u64 {
        loop {
            match self.closings.recv().await {
                Some((id, stream)) => {
                    // It may be over meanwhile.
                    if let Some(open) = self.open.get_mut(&id) {
                        open.closing = Some(stream);
                        return id;
                    }
                }
                // It fails only if all senders are gone, of which `self` holds one.
                None => std::future::pending().await,
            }
        }
    }

    /// The VM has ended.
    pub(crate) fn clear(&mut self) {
        self.asked.clear();
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt;

    use super::*;

    /// One that the guest has accepted, as number 9, and the VMM's end of it.
    async fn opened(flows: &mut OpenedFlows) -> (OpenedFlow, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reply, answer) = oneshot::channel();
        flows.ask(1, ours, reply);
        assert!(flows.answered(1, Ok(9)));
        (answer.await.unwrap().unwrap(), theirs)
    }

    #[tokio::test]
    async fn one_that_is_dropped_stays_open_until_it_is_reset() {
        let mut flows = OpenedFlows::new();
        let (flow, mut theirs) = opened(&mut flows).await;
        drop(flow);
        assert_eq!(flows.next_to_close().await, 9);
        assert!(theirs.try_read(&mut [0]).is_err(), "an end is told");
        assert!(flows.ended(9, End::Reset));
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        // Nothing is left of it.
        assert!(!flows.ended(9, End::Reset));
    }

    #[tokio::test]
    async fn who_has_given_up_leaves_nothing() {
        let mut flows = OpenedFlows::new();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (reply, answer) = oneshot::channel();
        flows.ask(1, ours, reply);
        drop(answer);
        assert!(flows.answered(1, Ok(9)));
        assert_eq!(flows.next_to_close().await, 9);
        // What nobody asked for is no answer.
        assert!(!flows.answered(1, Ok(10)));
        assert!(!flows.answered(2, Err(NotOpened::Refused)));
    }

    #[tokio::test]
    async fn only_an_end_in_order_is_told_as_one() {
        for (said, how, in_order) in [
            (false, End::Reset, false),
            (true, End::Reset, true),
            (false, End::Closed, true),
            (false, End::Idle, false),
        ] {
            let mut flows = OpenedFlows::new();
            let (mut flow, _theirs) = opened(&mut flows).await;
            if said {
                flows.finished(9);
                flows.finished(9);
            }
            assert!(flows.ended(9, how));
            assert_eq!((&mut flow.finished).await.is_ok(), in_order, "{how:?}");
            assert_eq!((&mut flow.ended).await.unwrap(), how);
        }
        // The VM is gone.
        let mut flows = OpenedFlows::new();
        let (mut flow, _theirs) = opened(&mut flows).await;
        flows.clear();
        assert!((&mut flow.finished).await.is_err());
        assert!((&mut flow.ended).await.is_err());
    }
}
