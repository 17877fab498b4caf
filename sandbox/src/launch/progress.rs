//! What happens while a VM's parts are got ready, for whoever wants to see it.

pub use flashpan_rootfs::directory::Event as RootEvent;
pub use flashpan_rootfs::store::Event as ImageEvent;

/// Something that happens while a VM's parts are got ready.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// An image is being pulled.
    Image {
        /// Its name, as it was asked for.
        name: String,
        /// What happens.
        event: ImageEvent,
    },
    /// An image of a directory is being made, or of the built-in root.
    Root {
        /// What it is of, e.g. `image of ./debian`.
        what: String,
        /// What happens.
        event: RootEvent,
    },
    /// Something went wrong and was got over.
    Note(String),
    /// Something will not be as it should.
    Warning(String),
}

/// Who is told of [`Event`]s, from whichever thread has them. It must not take
/// long: the work waits for it.
pub trait Progress: Send + Sync {
    /// This has happened.
    fn on(&self, event: Event);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn on(&self, _: Event) {}
}

impl<F: Fn(Event) + Send + Sync> Progress for F {
    fn on(&self, event: Event) {
        self(event);
    }
}
