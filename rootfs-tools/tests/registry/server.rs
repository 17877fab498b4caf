//! A small HTTP server that does what a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Answers until it is dropped, one request for a connection.
pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

/// A request that has come.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// How many for the same path came before.
    pub(crate) before: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that is wanted.
    pub(crate) fn from(&self) -> Option<usize> {
        let range = self.header("range")?;
        let from = range.strip_prefix("bytes=")?.strip_suffix('-')?;
        Some(from.parse().unwrap())
    }
}

/// Where the answer goes. Errors are the client's business: it may have gone.
pub(crate) struct Reply(TcpStream);

impl Reply {
    /// A whole answer.
    pub(crate) fn send(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let length = body.len().to_string();
        let mut all = vec![("content-length", length.as_str())];
        all.extend_from_slice(headers);
        self.head(status, &all);
        self.raw(body);
    }

    /// The head of an answer.
    pub(crate) fn head(&mut self, status: u16, headers: &[(&str, &str)]) {
        let mut head = format!("HTTP/1.1 {status} Whatever\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.raw(head.as_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> bool {
        self.0
            .write_all(bytes)
            .and_then(|()| self.0.flush())
            .is_ok()
    }

    /// A body of unknown length: its pieces, and the end if it is to have one.
    pub(crate) fn chunks(&mut self, chunks: &[&[u8]], end: bool) {
        self.head(200, &[("transfer-encoding", "chunked")]);
        for chunk in chunks {
            self.chunk(chunk);
        }
        if end {
            self.raw(b"0\r\n\r\n");
        }
    }

    pub(crate) fn chunk(&mut self, chunk: &[u8]) -> bool {
        let mut bytes = format!("{:x}\r\n", chunk.len()).into_bytes();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
        self.raw(&bytes)
    }

    /// Waits until the client has gone.
    pub(crate) fn wait_for_hangup(&mut self) {
        let _ = self.0.read(&mut [0; 64]);
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.0
    }
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request, &mut Reply) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            stop: Arc::default(),
        };
        let (seen, stop) = (server.seen.clone(), server.stop.clone());
        let handler = Arc::new(handler);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, seen, handler) = (stream.unwrap(), seen.clone(), handler.clone());
                thread::spawn(move || {
                    if let Some(mut request) = read(&stream) {
                        let mut all = seen.lock().unwrap();
                        let same = all.iter().filter(|it: &&Request| it.path == request.path);
                        request.before = same.count();
                        all.push(request.clone());
                        drop(all);
                        handler(&request, &mut Reply(stream));
                    }
                });
            }
        });
        server
    }

    /// `HOST:PORT`.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Those whose path contains this.
    pub(crate) fn seen_for(&self, part: &str) -> Vec<Request> {
        let mut seen = self.seen();
        seen.retain(|request| request.path.contains(part));
        seen
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Nothing if what comes is not HTTP: that is answered as servers do.
fn read(stream: &TcpStream) -> Option<Request> {
    let mut first = [0];
    if stream.peek(&mut first).ok()? == 1 && !first[0].is_ascii_alphabetic() {
        let mut reply = Reply(stream.try_clone().ok()?);
        let _ = reply.0.read(&mut [0; 4096]).ok()?;
        reply.send(400, &[], b"");
        reply.wait_for_hangup();
        return None;
    }
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |it| it.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        path,
        headers,
        body: String::from_utf8(body).ok()?,
        before: 0,
    })
}
