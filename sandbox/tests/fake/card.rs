//! The card of the guest: its address is 127.0.0.2, which is this machine's as well.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use flashpan_protocol::control::Event;
use flashpan_protocol::network::{End, NotOpened};
use nix::libc;

use super::Control;

/// Connections that can be reset.
static OPEN: Mutex<Option<HashMap<u64, TcpStream>>> = Mutex::new(None);

/// Connects `stream` to a port, and tells of it.
pub(crate) fn open(control: &Control, id: u64, port: u16, stream: UnixStream, scenario: &str) {
    let why = match scenario {
        "silent-card" => NotOpened::Silent,
        _ => NotOpened::Refused,
    };
    let Ok(guest) = TcpStream::connect(("127.0.0.2", port)) else {
        control.send(&Event::FlowNotOpened { id, why }, None);
        return;
    };
    stream.set_nonblocking(false).unwrap();
    let flow = id + 1000;
    let mut open = OPEN.lock().unwrap();
    let open = open.get_or_insert_with(HashMap::new);
    open.insert(flow, guest.try_clone().unwrap());
    control.send(&Event::FlowOpened { id, flow }, None);
    let control = control.another();
    std::thread::spawn(move || {
        let how = relay(&control, flow, &guest, &stream);
        if how == End::Reset {
            // Until here nothing is told by its end.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(stream);
        OPEN.lock().unwrap().as_mut().unwrap().remove(&flow);
        control.send(&Event::FlowEnded { id: flow, how }, None);
    });
}

/// Resets a connection.
pub(crate) fn close(id: u64) {
    let guest = OPEN
        .lock()
        .unwrap()
        .as_mut()
        .and_then(|all| all.remove(&id));
    if let Some(guest) = guest {
        reset(&guest);
    }
}

/// Lets the peer see a reset, whoever else has the connection: what is dissolved
/// (`AF_UNSPEC`) is reset (connect(2)).
fn reset(guest: &TcpStream) {
    let nowhere = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    let len = u32::try_from(std::mem::size_of_val(&nowhere)).unwrap();
    // SAFETY: `nowhere` is an address of that length.
    unsafe { libc::connect(guest.as_raw_fd(), &raw const nowhere, len) };
}

fn relay(control: &Control, flow: u64, guest: &TcpStream, stream: &UnixStream) -> End {
    std::thread::scope(|scope| {
        let up = scope.spawn(|| {
            copy(&mut &*stream, &mut &*guest)?;
            guest.shutdown(Shutdown::Write)
        });
        let down = copy(&mut &*guest, &mut &*stream);
        match &down {
            Ok(()) => {
                let _ = stream.shutdown(Shutdown::Write);
                control.send(&Event::FlowFinished { id: flow }, None);
            }
            Err(_) => drop(stream.shutdown(Shutdown::Both)),
        }
        match (up.join().unwrap(), down) {
            (Ok(()), Ok(())) => End::Closed,
            _ => End::Reset,
        }
    })
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    std::io::copy(from, to).map(drop)
}
