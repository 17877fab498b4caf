//! A name server on the loopback interface, that keeps what it was asked.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What it says to a question.
#[derive(Clone)]
pub(super) enum Say {
    Records(Vec<Record>),
    Code(ResponseCode),
    /// Records, by TCP only.
    Long(Vec<Record>),
    /// These, when it is told to.
    Held(Arc<Notify>, Vec<Record>),
    Nothing,
}

/// A question that it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Had {
    pub(super) name: String,
    pub(super) kind: RecordType,
    /// Codes of the options that came with it.
    pub(super) options: usize,
    pub(super) is_tcp: bool,
}

#[derive(Default)]
struct Zone {
    says: Mutex<HashMap<(String, RecordType), Say>>,
    had: Mutex<Vec<Had>>,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    zone: Arc<Zone>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// One that knows of no name.
    pub(super) async fn new() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // Somebody else may have this port of TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone = Arc::new(Zone::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(udp, Arc::clone(&zone)));
        tasks.spawn(streams(tcp, Arc::clone(&zone)));
        Self {
            address,
            zone,
            _tasks: tasks,
        }
    }

    /// A name has these addresses.
    pub(super) fn has(&self, name: &str, addresses: &[&str]) {
        for (kind, is_ipv4) in [(RecordType::A, true), (RecordType::AAAA, false)] {
            let addresses = addresses.iter().map(|text| text.parse::<IpAddr>().unwrap());
            let addresses = addresses.filter(|address| address.is_ipv4() == is_ipv4);
            let records = addresses.map(|address| record(name, RData::from(address)));
            self.says(name, kind, Say::Records(records.collect()));
        }
    }

    pub(super) fn says(&self, name: &str, kind: RecordType, say: Say) {
        let mut says = self.zone.says.lock().unwrap();
        says.insert((name.to_owned(), kind), say);
    }

    /// What it was asked, and forgets.
    pub(super) fn had(&self) -> Vec<Had> {
        std::mem::take(&mut self.zone.had.lock().unwrap())
    }
}

pub(super) fn record(name: &str, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(format!("{name}.")).unwrap(), 3600, data)
}

impl Zone {
    async fn say(&self, question: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).unwrap();
        let [query] = question.queries.as_slice() else {
            panic!("{question:?}");
        };
        let name = query.name().to_ascii();
        let name = name.trim_end_matches('.').to_owned();
        let kind = query.query_type();
        let edns = question.edns.as_ref();
        self.had.lock().unwrap().push(Had {
            name: name.clone(),
            kind,
            options: edns.map_or(0, |edns| edns.options().as_ref().len()),
            is_tcp,
        });
        let say = self.says.lock().unwrap().get(&(name, kind)).cloned();
        let mut answer = Message::response(question.id, question.op_code);
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        match say.unwrap_or(Say::Code(ResponseCode::NXDomain)) {
            Say::Records(records) => drop(answer.add_answers(records)),
            Say::Code(code) => answer.metadata.response_code = code,
            Say::Long(records) if is_tcp => drop(answer.add_answers(records)),
            Say::Long(_) => answer.metadata.truncation = true,
            Say::Held(until, records) => {
                until.notified().await;
                answer.add_answers(records);
            }
            Say::Nothing => return None,
        }
        Some(answer.to_vec().unwrap())
    }
}

async fn datagrams(socket: UdpSocket, zone: Arc<Zone>) {
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        let (socket, zone) = (Arc::clone(&socket), Arc::clone(&zone));
        let question = buffer[..len].to_vec();
        tasks.spawn(async move {
            if let Some(answer) = zone.say(&question, false).await {
                socket.send_to(&answer, from).await.unwrap();
            }
        });
    }
}

async fn streams(listener: TcpListener, zone: Arc<Zone>) {
    let mut tasks = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let zone = Arc::clone(&zone);
        tasks.spawn(async move {
            while let Ok(len) = stream.read_u16().await {
                let mut question = vec![0; len.into()];
                stream.read_exact(&mut question).await.unwrap();
                if let Some(answer) = zone.say(&question, true).await {
                    let len = u16::try_from(answer.len()).unwrap();
                    stream.write_u16(len).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
    }
}
