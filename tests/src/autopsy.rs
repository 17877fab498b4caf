//! What a process and all that it started were doing when it did not end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::Duration;

/// Between the two looks, which tell who waits from who computes.
const BETWEEN: Duration = Duration::from_secs(1);

/// A line for each thread of the process and of its descendants: its name, what it waits
/// for, and how much CPU time it got while this looked.
#[must_use]
pub fn autopsy(pid: i32) -> String {
    let before = threads(pid);
    // What it measures is this second.
    thread::sleep(BETWEEN);
    let mut text = String::new();
    for (thread, now) in threads(pid) {
        let spent = before.get(&thread).map(|then| now.ticks - then.ticks);
        let _ = writeln!(
            text,
            "{thread} {} state {} in {} of system call {}; {} of CPU time",
            now.name,
            now.state,
            now.waits_in,
            now.call,
            spent.map_or_else(|| "new".to_owned(), |ticks| format!("{ticks}0 ms")),
        );
    }
    text
}

struct Thread {
    name: String,
    state: String,
    waits_in: String,
    call: String,
    ticks: u64,
}

/// By process and thread.
fn threads(root: i32) -> BTreeMap<String, Thread> {
    let mut found = BTreeMap::new();
    let mut left = vec![root];
    while let Some(pid) = left.pop() {
        for task in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let read = |file: &str| {
                let text = fs::read_to_string(task.path().join(file)).unwrap_or_default();
                text.trim().to_owned()
            };
            left.extend(
                read("children")
                    .split_ascii_whitespace()
                    .filter_map(|child| child.parse::<i32>().ok()),
            );
            let stat = read("stat");
            let fields: Vec<&str> = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.split(' ').collect())
                .unwrap_or_default();
            let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
            let name = format!("{pid}/{}", task.file_name().display());
            let call = read("syscall");
            found.insert(
                name,
                Thread {
                    name: read("comm"),
                    state: (*fields.first().unwrap_or(&"?")).to_owned(),
                    waits_in: read("wchan"),
                    call: call.split(' ').take(2).collect::<Vec<_>>().join(" "),
                    ticks: number(11).unwrap_or(0) + number(12).unwrap_or(0),
                },
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_is_there_with_what_it_does() {
        let (over, wait) = std::sync::mpsc::channel::<()>();
        let waiter = thread::Builder::new()
            .name("waits".to_owned())
            .spawn(move || wait.recv());
        let own = i32::try_from(std::process::id()).unwrap();
        let text = autopsy(own);
        drop(over);
        let line = text.lines().find(|line| line.contains(" waits state S"));
        assert!(
            line.is_some_and(|line| line.ends_with("00 ms of CPU time")),
            "{text}"
        );
        let _ = waiter.unwrap().join();
    }
}
