//! An internet of one's own: a network of the kernel's beside the one of a test, to which
//! every address belongs, and a wire between both on which all packets are seen.
//!
//! ```text
//!  thread of the test, and what it starts      threads of the internet
//!  ┌───────────────────────────────────┐       ┌──────────────────────────────┐
//!  │ a host: 81.2.69.142, default ─ net0 ─ tap ─ net0 ─ every address is local │
//!  └───────────────────────────────────┘       └──────────────────────────────┘
//! ```
//!
//! Nothing of it reaches another network. Whatever the host sends to any address arrives,
//! unless its routes keep it, and is written down before it does: what is not written
//! down nobody outside has seen.

mod dns;
mod packet;
mod tun;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use dns::Zones;

/// The name server of the internet.
pub const NAME_SERVER: &str = "9.9.9.9";

/// The host's own addresses, as others know it: of the internet.
pub const HOST: [&str; 2] = ["81.2.69.142", "2a02:6b8:1::142"];

/// Something that left the host, or reached one of its own services.
type Contact = (Option<String>, Vec<u8>);

/// What was seen, in its order.
#[derive(Debug, Default)]
struct Record {
    all: Mutex<Vec<Contact>>,
    is_more: Condvar,
}

impl Record {
    fn add(&self, what: Option<String>, bytes: &[u8]) {
        self.all().push((what, bytes.to_vec()));
        self.is_more.notify_all();
    }

    fn all(&self) -> MutexGuard<'_, Vec<Contact>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has(contacts: &[Contact], bytes: &[u8]) -> bool {
    let has = |packet: &[u8]| packet.windows(bytes.len()).any(|part| part == bytes);
    contacts.iter().any(|(_, packet)| has(packet))
}

/// Runs the test of the calling thread in an internet, by who may make networks: root, or the
/// root of a user namespace.
///
/// # Panics
/// If it does, and where nobody may.
pub fn run(test: impl FnOnce(Internet) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        return as_root_of_a_namespace();
    }
    // Networks belong to threads: what the test starts shares its own.
    let test = thread::spawn(move || test(Internet::new()));
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs the test of the calling thread once more.
fn as_root_of_a_namespace() {
    let thread = thread::current();
    let test = thread.name().expect("a test has a name");
    let again = std::env::current_exe().expect("the program of the test");
    let run = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(again)
        .args(["--exact", test, "--test-threads", "1"])
        .stderr(Stdio::inherit())
        .output()
        .expect("there is no `unshare`");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "as root of a namespace: {said}");
}

type Job = Box<dyn FnOnce() + Send>;

/// An internet.
#[derive(Debug)]
pub struct Internet {
    zones: Arc<Zones>,
    record: Arc<Record>,
    jobs: mpsc::Sender<Job>,
    web: Option<Web>,
}

/// A program that serves HTTP and HTTPS.
#[derive(Debug)]
struct Web {
    program: Child,
    directory: TempDir,
    values: Vec<String>,
}

impl Drop for Web {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.program.stdin.take());
        let _ = self.program.wait();
    }
}

impl Internet {
    /// Gives the calling thread, and all that it starts from now on, the network of a host
    /// that has this internet as its own.
    ///
    /// # Panics
    /// Without the right to make networks (root has it, in a user namespace too), and
    /// without `ip`.
    #[must_use]
    #[allow(clippy::new_without_default)] // It changes the thread.
    pub fn new() -> Self {
        let host = apart();
        ip("addr add 81.2.69.142/28 dev net0");
        ip("addr add 2a02:6b8:1::142/64 dev net0 nodad");
        ip("route add default dev net0");
        ip("-6 route add default dev net0");
        let record = Arc::<Record>::default();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let world = apart();
            for (address, everything) in [
                ("81.2.69.142/32", "0.0.0.0/0"),
                ("2a02:6b8:1::142/128", "::/0"),
            ] {
                // The host is somewhere else; everything else is here.
                ip(&format!("route add {address} dev net0 table local"));
                ip(&format!("route add local {everything} dev lo table local"));
            }
            // The test waits for it.
            let _ = ready.send(world);
            for job in queue {
                job();
            }
        });
        let world = is_ready.recv().expect("there is no internet");
        let copy = |file: &File| file.try_clone().expect("a descriptor");
        let (to_host, to_world) = (copy(&host), copy(&world));
        let seen = Arc::clone(&record);
        let server = NAME_SERVER.parse().expect("an address");
        thread::spawn(move || {
            pump(host, to_world, |packet| {
                let packet_seen = packet::seen(packet, server);
                if !packet_seen.is_housekeeping {
                    seen.add(packet_seen.what, packet);
                }
            });
        });
        thread::spawn(move || pump(world, to_host, |_| {}));
        let internet = Self {
            zones: Arc::default(),
            record,
            jobs,
            web: None,
        };
        let zones = Arc::clone(&internet.zones);
        internet.within(move || dns::serve(server, &zones));
        internet
    }

    /// Has something done in the network of the internet.
    fn within<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, done) = mpsc::channel();
        let job = move || drop(sender.send(job()));
        self.jobs.send(Box::new(job)).expect("there is no internet");
        done.recv().expect("it failed in the internet")
    }

    /// What the name server answers for a name, or for all names below it (`*.x`): the
    /// addresses of each answer, and the last ones from then on.
    ///
    /// # Panics
    /// If one is no address.
    pub fn name(&self, name: &str, answers: &[&[&str]]) {
        self.zones.add(name, answers);
    }

    /// A server at every address. It says `hello ADDRESS:PORT`, and then what it hears.
    ///
    /// # Panics
    /// If there is one already.
    pub fn serve_tcp(&self, port: u16) {
        self.within(move || listen(port, |_| {}));
    }

    /// A server of HTTP/1.1 at every address. It says at which one it is, for whom it was
    /// asked, and what else it was asked to speak; that HTTP/3 is elsewhere; for `/302/URL`
    /// that this is at the URL. It agrees to WebSocket, and says what it hears. Bodies of requests it takes for requests, and does not keep connections
    /// that send something else.
    ///
    /// # Panics
    /// If there is one already.
    pub fn serve_http(&self, port: u16) {
        self.within(move || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port");
            each(listener, |stream| drop(serve_requests(stream)));
        });
    }

    /// Servers of HTTP and HTTPS at every address, with certificates for names below
    /// `allowed.test` and `glob.test` (`web.py` says more). They tell in which places of a
    /// request these values are.
    ///
    /// # Panics
    /// If their ports are used, and without Python and `openssl`.
    pub fn serve_web(&mut self, values: &[&str]) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("python3");
        command
            .args(["-c", include_str!("web.py")])
            .arg(directory.path())
            .env("VALUES", values.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut program = self.within(move || command.spawn().expect("there is no Python"));
        let mut line = String::new();
        let said = program.stdout.take().expect("piped");
        let said = BufReader::new(said).read_line(&mut line);
        assert!(said.is_ok() && line == "up\n", "it did not come up");
        self.web = Some(Web {
            program,
            directory,
            values: values.iter().map(|&value| value.to_owned()).collect(),
        });
    }

    /// The values that [`Self::serve_web`] knows of.
    #[must_use]
    pub fn values(&self) -> &[String] {
        self.web.as_ref().map_or(&[], |web| &web.values)
    }

    /// The socket of a callback, if there is one, which blocks requests that it is shown a
    /// value in, and those that say so.
    #[must_use]
    pub fn callback(&self) -> Option<PathBuf> {
        let web = self.web.as_ref()?;
        Some(web.directory.path().join("callback"))
    }

    /// The file with the authority of [`Self::serve_web`], if there is one.
    #[must_use]
    pub fn authority(&self) -> Option<PathBuf> {
        let web = self.web.as_ref()?;
        Some(web.directory.path().join("ca.pem"))
    }

    /// A server at every address that sends without an end, and takes nothing.
    ///
    /// # Panics
    /// If there is one already.
    pub fn flood_tcp(&self, port: u16) {
        self.within(move || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port");
            each(
                listener,
                |mut stream| {
                    while stream.write_all(&[b'x'; 4096]).is_ok() {}
                },
            );
        });
    }

    /// A server of datagrams at one address, which says what it hears.
    ///
    /// # Panics
    /// If there is one already, or it is no address.
    pub fn serve_udp(&self, address: &str, port: u16) {
        let address: IpAddr = address.parse().expect("an address");
        self.within(move || {
            let socket = UdpSocket::bind((address, port)).expect("a port");
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..len], from).expect("cannot answer");
                }
            });
        });
    }

    /// Services of the host itself, at every address that it has, which nobody is to reach.
    ///
    /// # Panics
    /// If the port is used, and in another thread than that of [`Internet::new`].
    pub fn host_service(&self, port: u16) {
        let seen = Arc::clone(&self.record);
        listen(port, move |stream| {
            let local = stream.local_addr().map(|local| local.ip().to_canonical());
            seen.add(Some(format!("host tcp {local:?}")), &[]);
        });
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port");
        let seen = Arc::clone(&self.record);
        thread::spawn(move || {
            while socket.recv_from(&mut [0; 2048]).is_ok() {
                seen.add(Some("host udp".to_owned()), &[]);
            }
        });
    }

    /// How much was seen so far.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.record.all().len()
    }

    /// What was seen since: each once, in a line.
    #[must_use]
    pub fn contacts(&self, mark: usize) -> BTreeSet<String> {
        let all = self.record.all();
        let new = all.iter().skip(mark);
        new.filter_map(|(what, _)| what.clone()).collect()
    }

    /// Whether any packet since has these bytes in it.
    #[must_use]
    pub fn has_seen(&self, mark: usize, bytes: &[u8]) -> bool {
        has(self.record.all().get(mark..).unwrap_or_default(), bytes)
    }

    /// Waits until a packet has these bytes in it.
    ///
    /// # Panics
    /// If none has in this time.
    pub fn wait_for(&self, bytes: &[u8], patience: Duration) {
        let mut looked_at = 0;
        let is_missing = |all: &mut Vec<Contact>| {
            let found = has(all.get(looked_at..).unwrap_or_default(), bytes);
            looked_at = all.len();
            !found
        };
        let waited =
            self.record
                .is_more
                .wait_timeout_while(self.record.all(), patience, is_missing);
        let (_all, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "no packet with {bytes:?}");
    }
}

/// Gives the calling thread a network of its own, with a wire that ends in the file.
fn apart() -> File {
    unshare(CloneFlags::CLONE_NEWNET).expect("no right to make a network");
    let wire = tun::interface("net0").expect("no right to make an interface");
    ip("link set lo up");
    // The kernel has nothing to say on it by itself.
    ip("link set net0 addrgenmode none");
    ip("link set net0 up");
    wire
}

/// Runs `ip` in the network of the calling thread.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("there is no `ip`");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
}

/// Passes packets on, each after it was seen.
fn pump(mut from: File, mut to: File, see: impl Fn(&[u8])) {
    let mut packet = vec![0; 64 << 10];
    while let Ok(len) = from.read(&mut packet) {
        see(&packet[..len]);
        // What the other side does not take is lost, as on any wire.
        let _ = to.write_all(&packet[..len]);
    }
}

fn listen(port: u16, seen: impl Fn(&TcpStream) + Send + 'static) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port");
    let serve = |mut stream: TcpStream| {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let (ip, port) = (local.ip().to_canonical(), local.port());
        let hello = format!("hello {}\n", std::net::SocketAddr::new(ip, port));
        if stream.write_all(hello.as_bytes()).is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..len]).is_err() {
                return;
            }
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            seen(&stream);
            thread::spawn(move || serve(stream));
        }
    });
}

fn each(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Copy + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
}

fn serve_requests(mut stream: TcpStream) -> io::Result<()> {
    let at = stream.local_addr()?.ip().to_canonical();
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        let Some(request) = request.strip_suffix(" HTTP/1.1") else {
            break;
        };
        let (mut host, mut upgrade) = (String::new(), String::new());
        for line in lines.by_ref() {
            match line?.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("host") => {
                    value.trim().clone_into(&mut host);
                }
                Some((name, value)) if name.eq_ignore_ascii_case("upgrade") => {
                    upgrade = format!(" and {}", value.trim());
                }
                Some(_) => {}
                None => break,
            }
        }
        if upgrade == " and websocket" {
            let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                          Upgrade: websocket\r\n\r\n";
            stream.write_all(agreed.as_bytes())?;
            for line in lines {
                writeln!(stream, "{}", line?)?;
            }
            return Ok(());
        }
        let (status, body) = match request.split_once(" /302/") {
            Some((_, url)) => (format!("302 Found\r\nLocation: {url}"), url.to_owned()),
            None => ("200 OK".to_owned(), format!("{at} for {host}{upgrade}")),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nAlt-Svc: h3=\"evil.test:443\"\r\nContent-Length: {length}\r\n\r\n\
             {body}"
        )?;
    }
    Ok(())
}
