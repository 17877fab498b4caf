//! curl, a server on the loopback interface, and everything that may go wrong
//! between the two.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::*;

/// How the server answers one request.
pub(crate) enum Answer {
    /// The file, or the part that is asked for.
    Good,
    /// All of it, whatever is asked for, without saying how much that is.
    NoRanges,
    /// A complete header, this many bytes, and the end of the connection.
    Break(usize),
    /// A complete header, this many bytes, and silence until the client goes.
    Hang(usize),
    /// An error.
    Status(&'static str),
    /// Somewhere else, by this URL.
    Redirect(String),
}

/// An HTTP server that answers a request per [`Answer`] and then is gone.
pub(crate) struct Server {
    pub(crate) url: String,
    /// The `Range` of each request, empty where it had none.
    pub(crate) ranges: Receiver<String>,
}

impl Server {
    pub(crate) fn new(file: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (send, ranges) = channel();
        thread::spawn(move || {
            for answer in answers {
                let (client, _) = listener.accept().unwrap();
                serve(client, &file, &answer, &send);
            }
        });
        Self { url, ranges }
    }
}

fn serve(mut client: TcpStream, file: &[u8], answer: &Answer, ranges: &Sender<String>) {
    let mut range = String::new();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        if let Some(value) = line.strip_prefix("Range: bytes=") {
            value.trim().clone_into(&mut range);
        }
        line.clear();
    }
    let from: usize = range.trim_end_matches('-').parse().unwrap_or(0);
    // The test may be over.
    let _ = ranges.send(range);
    let rest = file.get(from..).unwrap_or_default();
    let head = if from == 0 {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}", rest.len())
    } else if rest.is_empty() {
        "HTTP/1.1 416 Range Not Satisfiable".to_owned()
    } else {
        let (last, all) = (file.len() - 1, file.len());
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{all}\r\n\
             Content-Length: {}",
            rest.len()
        )
    };
    let (head, body) = match answer {
        Answer::Good => (head, rest),
        Answer::NoRanges => ("HTTP/1.1 200 OK".to_owned(), file),
        Answer::Break(length) | Answer::Hang(length) => (head, &rest[..*length]),
        Answer::Status(status) => (format!("HTTP/1.1 {status}"), &b"no kernel"[..]),
        Answer::Redirect(to) => (format!("HTTP/1.1 302 Found\r\nLocation: {to}"), &b""[..]),
    };
    // A client that has gone is what some tests are about.
    let _ = write!(client, "{head}\r\nConnection: close\r\n\r\n");
    let _ = client.write_all(body);
    if matches!(answer, Answer::Hang(_)) {
        let _ = reader.read_line(&mut line);
    }
}

/// A place to download to, and something to download.
struct Bench {
    directory: tempfile::TempDir,
    file: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            file: (0..300_000_u32).map(|n| (n / 7).to_le_bytes()[0]).collect(),
        }
    }

    fn server(&self, answers: Vec<Answer>) -> Server {
        Server::new(self.file.clone(), answers)
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("sources/linux-1.tar.xz")
    }

    fn part(&self) -> PathBuf {
        self.directory.path().join("sources/linux-1.tar.xz.part")
    }

    fn upstream(&self, url: &str) -> Upstream {
        Upstream::default()
            .with_mirror(url)
            .unwrap()
            .with_pin("1", &hex(&Sha256::digest(&self.file)))
    }

    fn fetch(&self, url: &str) -> Result<Vec<Transfer>, DownloadError> {
        let mut transfers = Vec::new();
        fetch(
            &self.upstream(url),
            &self.target(),
            Duration::from_secs(1),
            &Cancel::default(),
            &mut |transfer| transfers.push(transfer),
        )?;
        Ok(transfers)
    }

    fn assert_whole(&self) {
        assert!(fs::read(self.target()).unwrap() == self.file);
        assert!(!self.part().exists());
    }
}

#[test]
fn a_file_arrives_whole_and_the_progress_knows_its_length() {
    let bench = Bench::new();
    let server = bench.server(vec![Answer::Good]);
    let transfers = bench.fetch(&server.url).unwrap();
    bench.assert_whole();
    let all = 300_000;
    assert!(transfers.is_sorted_by_key(|transfer| transfer.done));
    assert_eq!(
        transfers.last().unwrap(),
        &Transfer {
            done: all,
            total: Some(all)
        }
    );
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let bench = Bench::new();
    let server = bench.server(vec![
        Answer::Break(100_000),
        Answer::Break(50_000),
        Answer::Good,
    ]);
    let transfers = bench.fetch(&server.url).unwrap();
    bench.assert_whole();
    let ranges: Vec<_> = server.ranges.iter().collect();
    assert_eq!(ranges, ["", "100000-", "150000-"]);
    assert_eq!(transfers.last().unwrap().total, Some(300_000));
}

#[test]
fn a_connection_that_brings_nothing_more_is_given_up_and_what_came_is_kept() {
    let bench = Bench::new();
    let server = bench.server(vec![Answer::Hang(100_000), Answer::Hang(0)]);
    let error = bench.fetch(&server.url).unwrap_err().to_string();
    for part in [
        &server.url,
        "too slow",
        "apt-get install linux-source-6.12",
        "--source",
        "100000 bytes that have come are kept",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!bench.target().exists());

    let server = bench.server(vec![Answer::Good]);
    bench.fetch(&server.url).unwrap();
    bench.assert_whole();
    assert_eq!(server.ranges.recv().unwrap(), "100000-");
}

#[test]
fn a_server_that_cannot_resume_gives_the_file_from_the_beginning() {
    let bench = Bench::new();
    let server = bench.server(vec![
        Answer::Break(100_000),
        Answer::NoRanges,
        Answer::NoRanges,
    ]);
    bench.fetch(&server.url).unwrap();
    bench.assert_whole();
}

#[test]
fn what_is_left_of_another_file_is_replaced() {
    for left in [vec![0; 100_000], vec![0; 300_000], vec![0; 400_000]] {
        let bench = Bench::new();
        fs::create_dir(bench.part().parent().unwrap()).unwrap();
        fs::write(bench.part(), left).unwrap();
        let server = bench.server(vec![Answer::Good, Answer::Good]);
        bench.fetch(&server.url).unwrap();
        bench.assert_whole();
    }
}

#[test]
fn a_part_that_is_whole_needs_no_server() {
    let bench = Bench::new();
    fs::create_dir(bench.part().parent().unwrap()).unwrap();
    fs::write(bench.part(), &bench.file).unwrap();
    bench.fetch("http://127.0.0.1:1").unwrap();
    bench.assert_whole();
}

#[test]
fn another_file_than_the_pinned_one_is_removed() {
    let bench = Bench::new();
    let server = Server::new(
        b"a page for guests of this hotel".to_vec(),
        vec![Answer::Good],
    );
    let error = bench.fetch(&server.url).unwrap_err();
    assert!(matches!(error, DownloadError::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains("was removed"), "{error}");
    assert!(!bench.target().exists() && !bench.part().exists());
}

#[test]
fn an_error_of_the_server_is_no_file() {
    let bench = Bench::new();
    let server = bench.server(vec![Answer::Status("404 Not Found")]);
    let error = bench.fetch(&server.url).unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
    assert_eq!(fs::metadata(bench.part()).unwrap().len(), 0);
}

#[test]
fn a_server_may_send_on_to_another_but_not_to_a_file() {
    let bench = Bench::new();
    let other = bench.server(vec![Answer::Good]);
    let server = bench.server(vec![Answer::Redirect(format!("{}/x", other.url))]);
    let transfers = bench.fetch(&server.url).unwrap();
    bench.assert_whole();
    assert_eq!(transfers.last().unwrap().total, Some(300_000));

    let bench = Bench::new();
    let secret = bench.directory.path().join("secret");
    fs::write(&secret, &bench.file).unwrap();
    let server = bench.server(vec![Answer::Redirect(format!(
        "file://{}",
        secret.display()
    ))]);
    let error = bench.fetch(&server.url).unwrap_err();
    assert!(matches!(error, DownloadError::Failed { .. }), "{error}");
}

#[test]
fn a_directory_of_this_machine_is_a_mirror() {
    let bench = Bench::new();
    fs::write(bench.directory.path().join("linux-1.tar.xz"), &bench.file).unwrap();
    bench
        .fetch(&format!("file://{}", bench.directory.path().display()))
        .unwrap();
    bench.assert_whole();
}

#[test]
fn no_server_is_said_with_what_to_do_instead() {
    let bench = Bench::new();
    // The port was free a moment ago, and nobody listens on it.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = bench
        .fetch(&format!("http://127.0.0.1:{port}"))
        .unwrap_err()
        .to_string();
    for part in ["connect to 127.0.0.1", "FLASHPAN_KERNEL_MIRROR"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_cancelled_download_ends_at_once_and_goes_on_later() {
    let bench = Bench::new();
    let server = bench.server(vec![Answer::Hang(100_000), Answer::Good]);
    let cancel = Cancel::default();
    let upstream = bench.upstream(&server.url);
    // Only the cancellation can end it: the server is silent, and curl patient.
    let patient = Duration::from_secs(1000);
    let error = fetch(&upstream, &bench.target(), patient, &cancel, &mut |now| {
        if now.done == 100_000 {
            cancel.cancel();
        }
    })
    .unwrap_err();
    assert!(matches!(error, DownloadError::Cancelled), "{error}");
    assert!(!bench.target().exists());
    bench.fetch(&server.url).unwrap();
    bench.assert_whole();
    let ranges: Vec<_> = server.ranges.iter().collect();
    assert_eq!(ranges, ["", "100000-"]);
}
