//! Whoever reads a secret leaves no copy of it in memory that nobody has any more.

// An allocator is unsafe by its interface; this one looks at what is given back.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use flashpan::launch::SecretSource;
use flashpan_protocol::supervisor::Hidden;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::StrDeserializer;
use zeroize::Zeroizing;

/// Of what the secret consists: nothing else has that in it.
const BYTE: u8 = 0xA7;

/// How many pieces of memory were given back with a part of the secret in them.
static LEFT: AtomicUsize = AtomicUsize::new(0);

struct Looking;

// SAFETY: it does what the system's does, and reads what is given back, which is as long as
// its layout says and was begun with zeros, so all of it may be read.
unsafe impl GlobalAlloc for Looking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as of the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: it was allocated with this layout, and is initialised.
        let all = unsafe { std::slice::from_raw_parts(memory, layout.size()) };
        // UTF-8 of the character that the secret consists of.
        if all
            .windows(8)
            .any(|some| some.chunks(2).all(|pair| pair == [0xC2, BYTE]))
        {
            LEFT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as of the caller.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Looking = Looking;

#[test]
fn no_copy_of_a_secret_is_left_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("k");
    // Written without its being in the memory of this process.
    let write = |count: usize, tail: &str| {
        let script = format!(
            "head -c {count} /dev/zero | sed 's/\\x00/\\xC2\\xA7/g' > {0}; printf '{tail}' >> {0}",
            path.display()
        );
        let done = std::process::Command::new("sh")
            .args(["-c", &script])
            .status();
        assert!(done.unwrap().success());
    };
    let read = || {
        let read = SecretSource::File(path.clone()).read();
        let command = SecretSource::Command(format!("cat {}", path.display())).read();
        assert_eq!(read.is_ok(), command.is_ok());
        read.map(|value| value.expose().len()).ok()
    };
    write(20_000, "\\n");
    assert_eq!(read(), Some(40_000));
    assert_eq!(LEFT.swap(0, Ordering::Relaxed), 0);
    // Nor of one that is sent to the supervisor, and of what it makes of that.
    let value = SecretSource::File(path.clone()).read().unwrap();
    let sent = Hidden(Zeroizing::new(value.expose().to_owned()));
    let text: StrDeserializer<'_, serde::de::value::Error> = sent.0.as_str().into_deserializer();
    let got = Hidden::deserialize(text).unwrap();
    assert!(got == sent);
    drop((value, sent.clone(), sent, got));
    assert_eq!(LEFT.swap(0, Ordering::Relaxed), 0);
    // Nor of what is too long, or no text.
    write(40_000, "");
    assert_eq!(read(), None);
    write(1000, "\\377");
    assert_eq!(read(), None);
    assert_eq!(LEFT.load(Ordering::Relaxed), 0);
    // It would be found.
    drop("\u{A7}".repeat(100));
    assert_eq!(LEFT.load(Ordering::Relaxed), 1);
}
