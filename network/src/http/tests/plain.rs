//! Requests in the clear.

use super::*;
use crate::policy::Basis;
use crate::report::Scheme;

#[tokio::test]
async fn what_is_allowed_passes_as_it_is_and_what_is_not_is_told_why() {
    let mut world = World::new(policy(&["api.test:80"], &[]));
    let (address, seen) = server(|_| ok("hello")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let got = ask(
        &mut guest,
        "GET /a?b=c HTTP/1.1\r\nHost: api.test\r\nX-OdD: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n",
    )
    .await;
    assert_eq!((got.status, got.body.as_str()), (200, "hello"));
    // Not a header more, and none in another case.
    assert_eq!(got.head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(
        seen.requests(),
        ["GET /a?b=c HTTP/1.1\r\nHost: api.test\r\nX-OdD: 1\r\n\r\n"]
    );
    let report = world.report().await;
    assert_eq!(report.scheme, Scheme::Http);
    assert_eq!(report.host, "api.test:80");
    assert_eq!(report.method, "GET");
    assert_eq!(report.url, "http://api.test/a?b=c");
    assert_eq!((report.status, report.sent, report.received), (200, 0, 5));
    let allowed = Outcome::Allowed(Basis::Rule("api.test:80".to_owned()));
    assert_eq!(report.outcome, allowed);

    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert_eq!((got.status, got.code().as_str()), (403, "host_not_allowed"));
    assert!(
        got.body.contains("--allow-host evil.test:80"),
        "{}",
        got.body
    );
    assert_eq!(world.refused().await, Code::NotAllowed);
    // The connection goes on.
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: API.test.\r\n\r\n").await;
    assert_eq!(got.status, 200);
    assert!(seen.requests()[1].contains("Host: api.test\r\n"));
    assert_eq!(seen.connections(), 1, "one connection was used for both");
    assert_eq!(world.dialled(), ["api.test"]);
}
