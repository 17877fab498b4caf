//! The supervisor's side: the real code of flows, on a runtime as the program has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use flashpan_devices::net::NetEvent;
use flashpan_network::Flow;
use flashpan_network::{Answer, Gateway};
use flashpan_protocol::network::End;
use tokio::sync::mpsc::{self, UnboundedSender};
use vmm_sys_util::eventfd::EventFd;

/// Answers that may wait.
const ANSWERS: usize = 1024;

/// Starts it: it gets what the device tells, and gives answers, with a word by `wake`. It
/// ends with the device.
pub(super) fn start(
    gateway: Arc<Gateway>,
    answers: Sender<(u64, Answer)>,
    wake: EventFd,
) -> Result<(JoinHandle<()>, UnboundedSender<NetEvent>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let (events, mut told) = mpsc::unbounded_channel();
    let thread = thread::Builder::new().name("supervisor".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(async move {
            let (sender, mut answered) = mpsc::channel(ANSWERS);
            let mut running: HashMap<u64, Flow> = HashMap::new();
            loop {
                tokio::select! {
                    event = told.recv() => match event {
                        None => return,
                        Some(NetEvent::Asked { id, protocol, tuple, socket }) => {
                            let flow = gateway.begin(id, protocol, tuple, socket, sender.clone());
                            running.insert(id, flow);
                        }
                        Some(NetEvent::Ended { id, how }) => {
                            let flow = running.remove(&id);
                            // What was closed ends by itself.
                            if how != End::Closed && let Some(flow) = flow {
                                flow.abort();
                            }
                        }
                        // Nothing is opened here.
                        Some(NetEvent::Opened { .. } | NetEvent::NotOpened { .. } | NetEvent::Finished { .. }) => {}
                    },
                    answer = answered.recv() => {
                        if let Some(answer) = answer && answers.send(answer).is_ok() {
                            let _ = wake.write(1);
                        }
                    }
                }
            }
        });
    })?;
    Ok((thread, events))
}
