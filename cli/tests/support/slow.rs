//! A network between a pull and its registry that can be made to stand still.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes connections on to a registry. What comes back is counted, and held up
/// when there was enough of it.
pub struct SlowNetwork {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    passed: Mutex<Passed>,
    changed: Condvar,
}

#[derive(Default)]
struct Passed {
    bytes: u64,
    /// Nothing more than this comes through.
    limit: Option<u64>,
    held: bool,
}

impl SlowNetwork {
    /// In front of `registry` (`HOST:PORT`), without a limit.
    pub fn before(registry: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        // Ends with the process of the test.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.unwrap(), Arc::clone(&shared));
                let server = TcpStream::connect(&registry).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                thread::spawn(move || state.carry(&server, &client));
            }
        });
        Self { port, state }
    }

    /// The full name of an image behind it.
    pub fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Counts from 0 again, up to `limit` bytes; how many there were.
    pub fn reset(&self, limit: Option<u64>) -> u64 {
        let mut passed = self.state.passed.lock().unwrap();
        let new = Passed {
            limit,
            ..Passed::default()
        };
        let old = std::mem::replace(&mut *passed, new);
        self.state.changed.notify_all();
        old.bytes
    }

    /// Returns when the limit is reached and more was to come.
    pub fn wait_until_held(&self) {
        let passed = self.state.passed.lock().unwrap();
        let held = self.state.changed.wait_while(passed, |passed| !passed.held);
        drop(held.unwrap());
    }
}

impl State {
    fn carry(&self, mut server: &TcpStream, mut client: &TcpStream) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read) = server.read(&mut buffer)
            && read > 0
        {
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let now = self.allowed(rest.len());
                if client.write_all(&rest[..now]).is_err() {
                    let _ = server.shutdown(Shutdown::Both);
                    return;
                }
                rest = &rest[now..];
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Waits until some of `wanted` bytes may pass.
    fn allowed(&self, wanted: usize) -> usize {
        let mut passed = self.passed.lock().unwrap();
        loop {
            let left = passed.limit.map_or(u64::MAX, |limit| limit - passed.bytes);
            let now = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
            if now > 0 {
                passed.bytes += now as u64;
                return now;
            }
            passed.held = true;
            self.changed.notify_all();
            passed = self.changed.wait(passed).unwrap();
        }
    }
}
