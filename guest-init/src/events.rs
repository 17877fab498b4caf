//! What the supervisor is told of programs by itself, over its boot connection.

use std::collections::VecDeque;

use flashpan_protocol::agent::{
    Bytes, EVENT_ARGV, EVENT_DIRECTORY, GuestMessage, ProgramEnded, ProgramStarted,
};

use crate::connection::Connection;
use crate::plan::Plan;

/// Nothing more is sent while this much waits for the supervisor.
const QUEUE_HIGH: usize = 256 * 1024;

/// What happened and was not told yet. What the supervisor is too slow for is
/// counted instead of kept.
#[derive(Debug, Default)]
pub(crate) struct Events {
    waiting: VecDeque<GuestMessage>,
    lost: u64,
}

impl Events {
    pub(crate) fn started(&mut self, program: Box<ProgramStarted>) {
        self.waiting
            .push_back(GuestMessage::ProgramStarted(program));
    }

    pub(crate) fn ended(&mut self, program: ProgramEnded) {
        self.waiting.push_back(GuestMessage::ProgramEnded(program));
    }

    /// Sends what there is, as far as `connection` has room for it.
    pub(crate) fn send(&mut self, connection: &mut Connection) {
        let room = |connection: &Connection| connection.queued() < QUEUE_HIGH;
        while self.lost > 0 || !self.waiting.is_empty() {
            if !room(connection) {
                let waiting = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
                self.lost = self.lost.saturating_add(waiting);
                self.waiting.clear();
                return;
            }
            match std::mem::take(&mut self.lost) {
                0 => {
                    if let Some(message) = self.waiting.pop_front() {
                        connection.send(&message);
                    }
                }
                lost => connection.send(&GuestMessage::ProgramsLost(lost)),
            }
        }
    }
}

/// What is told of the start of `plan`; its process id is not known yet.
pub(crate) fn started(id: u64, plan: &Plan) -> ProgramStarted {
    let mut left = EVENT_ARGV;
    let mut truncated = false;
    let mut argv = Vec::new();
    for argument in &plan.arguments {
        let Some(room) = left.checked_sub(1) else {
            truncated = true;
            break;
        };
        let bytes = argument.as_bytes();
        let kept = bytes.get(..room).unwrap_or(bytes);
        truncated |= kept.len() < bytes.len();
        left = room.saturating_sub(kept.len());
        argv.push(Bytes::from(kept.to_vec()));
    }
    let directory = plan.directory.as_bytes();
    let directory = directory.get(..EVENT_DIRECTORY).unwrap_or(directory);
    ProgramStarted {
        id,
        pid: 0,
        argv,
        truncated,
        uid: plan.identity.uid,
        gid: plan.identity.gid,
        working_dir: Bytes::from(directory.to_vec()),
    }
}

#[cfg(test)]
mod tests;
