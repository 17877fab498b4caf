//! What users get from registries: from a real one, and from servers that do
//! what no registry should.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod distribution;
mod failures;
mod image;
mod misbehaviour;
mod proxy;
mod pull;
mod routes;
mod server;
mod store;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flashpan_rootfs::oci::image::Descriptor;
use flashpan_rootfs::reference::Reference;
use flashpan_rootfs::registry::{Client, Deadlines, Error, Notice, Options, Progress, Retry};

/// Patient with a busy machine, and quick to try again.
fn options(insecure: &[&str]) -> Options {
    let long = Duration::from_secs(120);
    Options {
        insecure: insecure.iter().map(|&name| name.to_owned()).collect(),
        deadlines: Deadlines {
            connect: long,
            idle: long,
            pace: long,
            document: long,
            helper: long,
        },
        retry: Retry {
            attempts: 3,
            first: Duration::from_millis(1),
            longest: Duration::from_secs(5),
        },
        ..Options::default()
    }
}

/// Gives up soon: for servers that never answer.
fn impatient(insecure: &[&str]) -> Options {
    let mut options = options(insecure);
    options.deadlines.idle = Duration::from_millis(100);
    options.deadlines.connect = Duration::from_millis(100);
    options.retry.attempts = 1;
    options
}

fn client(options: Options) -> Client {
    Client::new(options).unwrap_or_else(|error| panic!("{error}"))
}

/// Records what a client tells of.
fn with_notices(mut options: Options) -> (Options, Arc<Mutex<Vec<Notice>>>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let recorder = notices.clone();
    options.notify = Some(Arc::new(move |notice: &Notice| {
        recorder.lock().unwrap().push(notice.clone());
    }));
    (options, notices)
}

fn name(text: &str) -> Reference {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// A file that holds `prefix`.
fn file_with(prefix: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(prefix).unwrap();
    file
}

fn content(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

async fn fetch(
    client: &Client,
    image: &str,
    blob: &Descriptor,
    file: &mut File,
) -> Result<(), Error> {
    let mut ignore = |_: Progress<'_>| {};
    client
        .fetch_blob(&name(image), blob, file, &mut ignore)
        .await
}

/// The one line that a user sees.
fn line(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 700, "{text}");
    text
}
