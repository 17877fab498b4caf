//! What the kernel is told of a client's connection.

use std::net::Ipv4Addr;

use nix::sys::socket::getsockopt;

use super::*;

#[tokio::test]
async fn a_client_that_vanishes_is_found_out_within_two_minutes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_peer, accepted) = tokio::try_join!(TcpStream::connect(address), listener.accept())
        .map(|(peer, (accepted, _))| (peer, accepted))
        .unwrap();
    let stream = &Client::new(accepted).stream;
    assert!(getsockopt(stream, KeepAlive).unwrap());
    let idle = getsockopt(stream, TcpKeepIdle).unwrap();
    let interval = getsockopt(stream, TcpKeepInterval).unwrap();
    let count = getsockopt(stream, TcpKeepCount).unwrap();
    assert!(idle + interval * count <= 120, "{idle} {interval} {count}");
    // One lost packet is no vanished client.
    assert!(count > 1, "{count}");
}
