//! A name server that says what a test wants.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

const A: u16 = 1;
const AAAA: u16 = 28;

/// A question for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// As it is in the message: labels with dots between them.
    name: String,
    kind: u16,
    /// Where the question ends in the message.
    end: usize,
}

impl Question {
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let mut labels = Vec::new();
        let mut at = 12;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = message.get(at..at + length)?;
            labels.push(String::from_utf8_lossy(label).into_owned());
            at += length;
        }
        let kind = message.get(at..at + 2)?;
        Some(Self {
            name: labels.join("."),
            kind: u16::from_be_bytes([kind[0], kind[1]]),
            end: at + 4,
        })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, .. } = self;
        match *kind {
            A => write!(f, "{name} A"),
            AAAA => write!(f, "{name} AAAA"),
            kind => write!(f, "{name} TYPE{kind}"),
        }
    }
}

/// What a name server knows.
#[derive(Debug, Default)]
pub(super) struct Zones {
    /// What is answered for a name (`*.x`: for all below it), one after the other; the last
    /// one from then on.
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
}

impl Zones {
    pub(super) fn add(&self, name: &str, answers: &[&[&str]]) {
        let parse = |addresses: &&[&str]| {
            let addresses = addresses.iter();
            addresses
                .map(|text| text.parse().expect("an address"))
                .collect()
        };
        let mut all = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), answers.iter().map(parse).collect());
    }

    /// The addresses of one type; none if there is no such name.
    fn addresses(&self, question: &Question) -> Option<Vec<IpAddr>> {
        let mut all = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let name = question.name.to_ascii_lowercase();
        let mut key = name.clone();
        let mut below = name.as_str();
        while !all.contains_key(&key) {
            below = below.split_once('.')?.1;
            key = format!("*.{below}");
        }
        let answers = all.get_mut(&key)?;
        let is_asked = |address: &IpAddr| match question.kind {
            A => address.is_ipv4(),
            AAAA => address.is_ipv6(),
            _ => false,
        };
        let first = answers.first()?.clone();
        let addresses: Vec<IpAddr> = first.into_iter().filter(is_asked).collect();
        // One of the other type was not what changes.
        if answers.len() > 1 && !addresses.is_empty() {
            answers.remove(0);
        }
        Some(addresses)
    }

    /// The answer to a message, with a time to live of none.
    fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let question = Question::read(message)?;
        let addresses = self.addresses(&question);
        let code = if addresses.is_some() { 0 } else { 3 };
        let addresses = addresses.unwrap_or_default();
        let count = u16::try_from(addresses.len()).ok()?;
        let mut answer = message.get(..2)?.to_vec();
        answer.extend([0x81, 0x80 | code, 0, 1]);
        answer.extend(count.to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(message.get(12..question.end)?);
        for address in addresses {
            answer.extend([0xc0, 12]);
            answer.extend(question.kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 0]);
            let (length, octets) = match address {
                IpAddr::V4(address) => (4_u16, Ipv4Addr::octets(&address).to_vec()),
                IpAddr::V6(address) => (16, Ipv6Addr::octets(&address).to_vec()),
            };
            answer.extend(length.to_be_bytes());
            answer.extend(octets);
        }
        Some(answer)
    }
}

/// Answers on an address of the calling thread's network.
pub(super) fn serve(address: IpAddr, zones: &Arc<Zones>) {
    let udp = UdpSocket::bind((address, 53)).expect("cannot be a name server");
    let tcp = TcpListener::bind((address, 53)).expect("cannot be a name server by TCP");
    let known = Arc::clone(zones);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            if let Some(answer) = known.answer(&buffer[..len]) {
                udp.send_to(&answer, from).expect("cannot answer");
            }
        }
    });
    let known = Arc::clone(zones);
    thread::spawn(move || {
        for stream in tcp.incoming().map_while(Result::ok) {
            let known = Arc::clone(&known);
            thread::spawn(move || serve_stream(&known, stream));
        }
    });
}

fn serve_stream(zones: &Zones, mut stream: TcpStream) -> Option<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).ok()?;
        let answer = zones.answer(&message)?;
        let length = u16::try_from(answer.len()).ok()?;
        stream.write_all(&length.to_be_bytes()).ok()?;
        stream.write_all(&answer).ok()?;
    }
}
