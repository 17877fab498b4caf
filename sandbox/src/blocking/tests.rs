//! Limits of time beside a caller whose streams never have to be waited for.

use tokio::io::AsyncWriteExt;

use super::*;

/// Is always ready, and says at its third call that the time is up.
struct Endless {
    calls: u32,
    time_is_up: Option<oneshot::Sender<()>>,
}

impl Endless {
    fn call(&mut self) {
        self.calls += 1;
        assert!(self.calls < 10, "the limit is not seen");
        if self.calls == 3 {
            let _ = self.time_is_up.take().map(|sender| sender.send(()));
        }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.call();
        buffer.fill(0);
        Ok(buffer.len())
    }
}

impl Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How often the stream is used until the limit is seen.
fn calls_until_the_limit(work: impl AsyncFnOnce(&mut Endless)) -> u32 {
    let runtime = Runtime::start().unwrap();
    let (sender, limit) = oneshot::channel();
    let mut stream = Endless {
        calls: 0,
        time_is_up: Some(sender),
    };
    runtime.run(async {
        tokio::select! {
            biased;
            _ = limit => {}
            () = work(&mut stream) => {}
        }
    });
    stream.calls
}

#[test]
fn a_limit_of_time_is_seen_between_two_reads_of_a_caller_who_always_has_more() {
    let calls = calls_until_the_limit(async |from| {
        let mut source = Source::new(from);
        let mut buffer = [0; 16];
        loop {
            source.read_exact(&mut buffer).await.unwrap();
        }
    });
    assert_eq!(calls, 3);
}

#[test]
fn a_limit_of_time_is_seen_between_two_writes_to_a_caller_who_always_takes_more() {
    let calls = calls_until_the_limit(async |to| {
        let mut sink = Sink::new(to);
        loop {
            sink.write_all(&[0; 16]).await.unwrap();
        }
    });
    assert_eq!(calls, 3);
}
