//! The library for programs without an async runtime.
//!
//! Everything is what it is in the rest of the library, and blocks instead: each
//! [`Sandbox`] has a runtime of its own on a thread of its own, which does what
//! has to go on meanwhile.
//!
//! ```no_run
//! use flashpan::blocking::Sandbox;
//! use flashpan::{ExecOptions, FsType, Root};
//!
//! # fn example() -> Result<(), flashpan::Error> {
//! let root = Root::new("root.erofs", FsType::Erofs);
//! let sandbox = Sandbox::boot(flashpan::Sandbox::builder("vmlinux", root))?;
//! let hello = sandbox.exec(ExecOptions::argv(["echo", "hello"]))?;
//! assert_eq!(hello.collect(4096)?.stdout, b"hello\n");
//! # Ok(())
//! # }
//! ```
//!
//! [`Sandbox::create`] makes a VM from a configuration, [`Launch`] step by step, and
//! [`Sandbox::attach`] reaches one that another process supervises.
//!
//! # Panics
//!
//! All that blocks panics if it is called from asynchronous code.

mod launch;
mod life;

use std::io::{self, Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::api::FileInfo;
use crate::timeline::Report;
use crate::{
    Change, Collected, Copied, CopyOptions, Error, ExecOptions, Exit, ExitStatus, FileEntry,
    FileStat, Forward, ForwardOptions, PortForwarding, ReadOptions, Result, SandboxBuilder, Stats,
    TerminalSize, WatchOptions, WriteOptions,
};

pub use launch::{Checked, Launch};
pub use life::{Events, Logs};

/// A runtime on a thread of its own, which ends with the last handle.
#[derive(Debug)]
struct Runtime {
    handle: Handle,
    /// Dropped, it ends the runtime.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    fn start() -> Result<Arc<Self>> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::host("start a runtime"))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("flashpan".to_owned())
            .spawn(move || {
                // Nothing is ever sent. With the runtime, what it serves ends.
                let _ = runtime.block_on(stopped);
            })
            .map_err(Error::host("start the runtime's thread"))?;
        Ok(Arc::new(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        }))
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running micro-VM; [`crate::Sandbox`]. Dropping it kills the VM, and what it
/// gave out fails then.
#[derive(Debug)]
pub struct Sandbox {
    // Before the runtime: its VM is killed then, and reaped with the runtime.
    inner: crate::Sandbox,
    runtime: Arc<Runtime>,
}

// The documentation is that of the methods of the same name.
#[allow(clippy::missing_errors_doc)]
impl Sandbox {
    /// [`SandboxBuilder::boot`].
    pub fn boot(builder: SandboxBuilder) -> Result<Self> {
        let runtime = Runtime::start()?;
        let inner = runtime.run(builder.boot())?;
        Ok(Self { inner, runtime })
    }

    /// [`crate::Sandbox::exec`].
    pub fn exec(&self, options: ExecOptions) -> Result<Process> {
        let process = self.run(self.inner.exec(options))?;
        Ok(Process::new(process, &self.runtime))
    }

    /// [`crate::Sandbox::shutdown`].
    pub fn shutdown(&self, grace: Duration) -> Arc<Exit> {
        self.run(self.inner.shutdown(grace))
    }

    /// [`crate::Sandbox::shutdown_within`].
    pub fn shutdown_within(&self, grace: Duration, within: Duration) -> Arc<Exit> {
        self.run(self.inner.shutdown_within(grace, within))
    }

    /// [`crate::Sandbox::kill`].
    pub fn kill(&self) -> Arc<Exit> {
        self.run(self.inner.kill())
    }

    /// [`crate::Sandbox::wait`].
    pub fn wait(&self) -> Arc<Exit> {
        self.run(self.inner.wait())
    }

    /// [`crate::Sandbox::exit`].
    #[must_use]
    pub fn exit(&self) -> Option<Arc<Exit>> {
        self.inner.exit()
    }

    /// [`crate::Sandbox::timeline`].
    #[must_use]
    pub fn timeline(&self) -> Report {
        self.inner.timeline()
    }

    /// [`crate::Sandbox::stats`].
    pub fn stats(&self) -> Result<Stats> {
        self.run(self.inner.stats())
    }

    /// [`crate::Sandbox::console`].
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.inner.console()
    }

    /// [`crate::Sandbox::take_warnings`].
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        self.inner.take_warnings()
    }

    /// [`crate::Sandbox::write_file`].
    pub fn write_file(
        &self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        self.run(self.inner.write_file(path, content, options))
    }

    /// [`crate::Sandbox::write_file_from`].
    pub fn write_file_from(
        &self,
        path: impl AsRef<Path>,
        content: &mut (impl Read + Unpin),
        options: WriteOptions,
    ) -> Result<()> {
        let mut content = Source::new(content);
        self.run(self.inner.write_file_from(path, &mut content, options))
    }

    /// [`crate::Sandbox::read_file`].
    pub fn read_file(&self, path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>> {
        self.run(self.inner.read_file(path, limit))
    }

    /// [`crate::Sandbox::open_file`].
    pub fn open_file(&self, path: impl AsRef<Path>, options: ReadOptions) -> Result<FileReader> {
        let inner = self.run(self.inner.open_file(path, options))?;
        let runtime = Arc::clone(&self.runtime);
        Ok(FileReader { inner, runtime })
    }

    /// [`crate::Sandbox::list_files`].
    pub fn list_files(&self, path: impl AsRef<Path>) -> Result<Vec<FileInfo>> {
        self.run(self.inner.list_files(path))
    }

    /// [`crate::Sandbox::read_directory`].
    pub fn read_directory(&self, path: impl AsRef<Path>) -> Result<Vec<FileEntry>> {
        self.run(self.inner.read_directory(path))
    }

    /// [`crate::Sandbox::stat`].
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<FileStat> {
        self.run(self.inner.stat(path))
    }

    /// [`crate::Sandbox::stat_link`].
    pub fn stat_link(&self, path: impl AsRef<Path>) -> Result<FileStat> {
        self.run(self.inner.stat_link(path))
    }

    /// [`crate::Sandbox::mkdir`].
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32, parents: bool) -> Result<()> {
        self.run(self.inner.mkdir(path, mode, parents))
    }

    /// [`crate::Sandbox::remove`].
    pub fn remove(&self, path: impl AsRef<Path>, recursive: bool) -> Result<()> {
        self.run(self.inner.remove(path, recursive))
    }

    /// [`crate::Sandbox::rename`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.run(self.inner.rename(from, to))
    }

    /// [`crate::Sandbox::copy_in`].
    pub fn copy_in(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        self.run(self.inner.copy_in(from, to, options))
    }

    /// [`crate::Sandbox::copy_out`].
    pub fn copy_out(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        self.run(self.inner.copy_out(from, to, options))
    }

    /// [`crate::Sandbox::tar_in`]. Limits of time are looked at before each read of
    /// `from`, and cannot end one: give that a limit of its own if it may block.
    pub fn tar_in(
        &self,
        from: &mut (impl Read + Unpin),
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let mut from = Source::new(from);
        self.run(self.inner.tar_in(&mut from, to, options))
    }

    /// [`crate::Sandbox::tar_out`]. Limits of time are looked at before each write to
    /// `to`, and cannot end one: give that a limit of its own if it may block.
    pub fn tar_out(
        &self,
        from: impl AsRef<Path>,
        to: &mut (impl Write + Unpin),
        options: CopyOptions,
    ) -> Result<Copied> {
        let mut to = Sink::new(to);
        self.run(self.inner.tar_out(from, &mut to, options))
    }

    /// [`crate::Sandbox::watch`].
    pub fn watch(&self, path: impl AsRef<Path>, options: WatchOptions) -> Result<Watch> {
        let inner = self.run(self.inner.watch(path, options))?;
        let runtime = Arc::clone(&self.runtime);
        Ok(Watch { inner, runtime })
    }

    /// [`crate::Sandbox::port_forward`]. It goes on as long as this VM.
    pub fn port_forward(
        &self,
        forwards: &[Forward],
        options: ForwardOptions,
    ) -> Result<PortForwarding> {
        self.run(self.inner.port_forward(forwards, options))
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.run(future)
    }
}

/// A program that runs in a guest; [`crate::Process`]. Dropping it ends the
/// program.
#[derive(Debug)]
pub struct Process {
    /// The program's standard input, if it was asked for. Dropping it is end of
    /// file.
    pub stdin: Option<Stdin>,
    /// The program's standard output, or all output on a terminal. Whoever
    /// holds it has to read it or drop it, or the program stops.
    pub stdout: Option<Output>,
    /// The program's standard error; `None` on a terminal. As `stdout`.
    pub stderr: Option<Output>,
    inner: crate::Process,
    runtime: Arc<Runtime>,
}

#[allow(clippy::missing_errors_doc)] // As above.
impl Process {
    fn new(mut inner: crate::Process, runtime: &Arc<Runtime>) -> Self {
        let stdin = inner.stdin.take();
        let output = |inner: Option<crate::Output>| {
            let runtime = Arc::clone(runtime);
            inner.map(|inner| Output { inner, runtime })
        };
        Self {
            stdin: stdin.map(|inner| Stdin {
                inner,
                runtime: Arc::clone(runtime),
            }),
            stdout: output(inner.stdout.take()),
            stderr: output(inner.stderr.take()),
            inner,
            runtime: Arc::clone(runtime),
        }
    }

    /// [`crate::Process::pid`].
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.pid()
    }

    /// [`crate::Process::wait`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.runtime.run(self.inner.wait())
    }

    /// [`crate::Process::signal`].
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.inner.signal(signal)
    }

    /// [`crate::Process::resize`].
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        self.inner.resize(size)
    }

    /// [`crate::Process::cancel`].
    pub fn cancel(&self, grace: Duration) -> Result<()> {
        self.inner.cancel(grace)
    }

    /// [`crate::Process::collect`].
    pub fn collect(self, limit: usize) -> Result<Collected> {
        let (runtime, inner) = self.whole();
        runtime.run(inner.collect(limit))
    }

    /// [`crate::Process::collect_into`].
    pub fn collect_into(
        self,
        stdout: &mut Vec<u8>,
        stderr: &mut Vec<u8>,
        limit: usize,
    ) -> Result<ExitStatus> {
        let (runtime, inner) = self.whole();
        runtime.run(inner.collect_into(stdout, stderr, limit))
    }

    /// With its output, whose end can be waited for.
    fn whole(self) -> (Arc<Runtime>, crate::Process) {
        let mut inner = self.inner;
        inner.stdout = self.stdout.map(|output| output.inner);
        inner.stderr = self.stderr.map(|output| output.inner);
        // Its end of file may be waited for.
        drop(self.stdin);
        (self.runtime, inner)
    }
}

/// The standard input of a program; [`crate::Stdin`].
#[derive(Debug)]
pub struct Stdin {
    inner: crate::Stdin,
    runtime: Arc<Runtime>,
}

impl Write for Stdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.run(self.inner.write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output stream of a program; [`crate::Output`].
#[derive(Debug)]
pub struct Output {
    inner: crate::Output,
    runtime: Arc<Runtime>,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.run(self.inner.read(buffer))
    }
}

/// A file of the guest that is being read; [`crate::FileReader`].
#[derive(Debug)]
pub struct FileReader {
    inner: crate::FileReader,
    runtime: Arc<Runtime>,
}

impl FileReader {
    /// [`crate::FileReader::stat`].
    #[must_use]
    pub fn stat(&self) -> FileStat {
        self.inner.stat()
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.run(self.inner.read(buffer))
    }
}

/// The changes in a directory of the guest; [`crate::Watch`].
#[derive(Debug)]
pub struct Watch {
    inner: crate::Watch,
    runtime: Arc<Runtime>,
}

impl Iterator for Watch {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.run(self.inner.next()).transpose()
    }
}

/// Lets whatever else a future waits for go first, once before each blocking call: one
/// that is always ready would never let a limit of time be seen.
#[derive(Debug, Default)]
struct Turn {
    is_ours: bool,
}

impl Turn {
    fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        self.is_ours = !self.is_ours;
        match self.is_ours {
            true => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            false => Poll::Ready(()),
        }
    }
}

/// What the caller reads from, on the caller's thread.
struct Source<'a, R>(&'a mut R, Turn);

impl<'a, R> Source<'a, R> {
    fn new(from: &'a mut R) -> Self {
        Self(from, Turn::default())
    }
}

impl<R: Read + Unpin> AsyncRead for Source<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.1.poll(context));
        let read = loop {
            match self.0.read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

/// What the caller writes to, on the caller's thread.
struct Sink<'a, W>(&'a mut W, Turn);

impl<'a, W> Sink<'a, W> {
    fn new(to: &'a mut W) -> Self {
        Self(to, Turn::default())
    }
}

impl<W: Write + Unpin> AsyncWrite for Sink<'_, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.1.poll(context));
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

#[cfg(test)]
mod methods;
#[cfg(test)]
mod tests;
