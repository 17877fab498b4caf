//! Blobs: streamed into files, hashed on the way, taken up again where they
//! were interrupted.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use oci_spec::image::Descriptor;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::error::{Error, Failure};
use super::manifest::{check_part, is_foreign, named};
use super::options::Deadlines;
use super::resolve::no_endpoint;
use super::retry::Attempts;
use super::session::{Session, Wish};
use super::transport::Answer;
use super::verify::Verifier;
use super::{Inner, Progress};
use crate::reference::Reference;

/// What has to come within the idle deadline, in bytes: who sends less has
/// stopped for all that it matters.
const PIECE: u64 = 1 << 10;
/// What has to come within [`Deadlines::pace`](super::Deadlines::pace), in bytes.
const LEAST: u64 = 16 << 10;
/// How much further than ever before an attempt has to get to count as one that
/// went well, in bytes.
const STEP: u64 = 1 << 20;
/// What is read of a file at a time, in bytes.
const BUFFER: usize = 64 << 10;

/// A file that a blob is written to, and the hash of what it holds.
struct Sink<'a> {
    file: &'a mut File,
    blob: &'a Descriptor,
    hash: Verifier,
    /// Bytes that the file holds and the hash has seen.
    done: u64,
    /// Did what it holds come from somewhere else than the current download?
    inherited: bool,
}

impl Inner {
    pub(super) async fn fetch_blob(
        &self,
        image: &Reference,
        blob: &Descriptor,
        file: &mut File,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), Error> {
        let short = image.short();
        let endpoints = Endpoint::of(image, &self.options)?;
        check_part(
            blob,
            "layer",
            &short,
            image.registry(),
            self.options.limits.blob,
        )?;
        let mut sink = Sink::open(file, blob).await?;
        progress(sink.progress());
        if sink.done == blob.size() {
            if sink.is_right() {
                return Ok(());
            }
            sink.restart()?;
        }
        let mut last = None;
        for endpoint in &endpoints {
            let session = self.session(endpoint, &short);
            match session.download(&mut sink, progress).await {
                Ok(()) => return Ok(()),
                // Another server cannot help a file that cannot be written.
                Err(error @ Error::File { .. }) => return Err(error),
                Err(error) => last = Some(self.passed_over(endpoint, error)),
            }
        }
        Err(last.unwrap_or_else(no_endpoint))
    }
}

impl Session<'_> {
    /// Attempts until the blob is there.
    async fn download(
        &self,
        sink: &mut Sink<'_>,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), Error> {
        let blob = sink.blob;
        let what = named("layer", blob.digest(), self.image);
        let mut attempts = Attempts::new(&self.inner.options, self.endpoint.mirror);
        let mut furthest = sink.done;
        sink.inherited = sink.done > 0;
        let mut ranges = true;
        loop {
            let failure = match self.attempt(sink, &what, &mut ranges, progress).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if sink.done >= furthest.saturating_add(STEP) {
                furthest = sink.done;
                attempts.renew();
            }
            attempts.wait(self.explain(failure, sink, &what)).await?;
        }
    }

    fn explain(&self, failure: Failure, sink: &Sink<'_>, what: &str) -> Failure {
        let blob = sink.blob;
        if is_foreign(blob.media_type().as_ref()) && matches!(failure.error, Error::Status { .. }) {
            return Error::Foreign {
                image: self.image.to_owned(),
                digest: Box::new(blob.digest().clone()),
                host: self.endpoint.registry.clone(),
            }
            .into();
        }
        self.missing(failure, what)
    }

    /// One request for what is missing.
    async fn attempt(
        &self,
        sink: &mut Sink<'_>,
        what: &str,
        ranges: &mut bool,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), Failure> {
        if !*ranges {
            sink.restart()?;
        }
        let wish = Wish {
            url: self.endpoint.blob(sink.blob.digest().as_ref()),
            what,
            accept: None,
            from: sink.done,
        };
        let mut answer = self.get(&wish).await?;
        let whole = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT if sink.done > 0 && starts_at(&answer, sink.done) => false,
            // Asked for or not.
            StatusCode::OK => true,
            // A range that we did not ask for, or none where there has to be one.
            _ if sink.done > 0 => {
                *ranges = false;
                return Err(Failure::passing(Error::Malformed {
                    what: format!("a part of {what}"),
                    host: answer.host,
                    why: "it is not the part that was asked for".to_owned(),
                }));
            }
            _ => return Err(self.inner.transport.status(answer, what).await),
        };
        let before = if whole { 0 } else { sink.done };
        if let Some(length) = answer.response.content_length()
            && length != sink.blob.size().saturating_sub(before)
        {
            return Err(Error::Size {
                what: what.to_owned(),
                host: answer.host,
                got: Some(before.saturating_add(length)),
                size: sink.blob.size(),
            }
            .into());
        }
        if whole && sink.done > 0 {
            sink.restart()?;
        }
        self.pour(&mut answer, sink, what, progress).await?;
        if sink.is_right() {
            return Ok(());
        }
        let (wanted, found) = (sink.blob.digest().clone(), sink.hash.clone().finish());
        let inherited = sink.inherited;
        sink.restart()?;
        let error = Error::Digest {
            what: what.to_owned(),
            host: answer.host,
            wanted: Box::new(wanted),
            found,
        };
        // What was there before may have been wrong; without it, it is the
        // registry's fault.
        Err(if inherited {
            Failure::passing(error)
        } else {
            error.into()
        })
    }

    /// The body of an answer into the file.
    async fn pour(
        &self,
        answer: &mut Answer,
        sink: &mut Sink<'_>,
        what: &str,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), Failure> {
        let transport = &self.inner.transport;
        let Deadlines { idle, pace, .. } = self.inner.options.deadlines;
        let (mut idle_at, mut slow_at) = (Instant::now() + idle, Instant::now() + pace);
        let (mut piece, mut window) = (0, 0);
        loop {
            let chunk = transport
                .chunk(answer, what, idle_at.min(slow_at), idle)
                .await;
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(Failure {
                    error: Error::TimedOut { .. },
                    ..
                }) if slow_at < idle_at => {
                    return Err(Failure::passing(Error::Slow {
                        what: what.to_owned(),
                        host: answer.host.clone(),
                        got: window,
                        least: LEAST,
                        window: pace,
                    }));
                }
                Err(failure) => return Err(failure),
            };
            let chunk = chunk.as_ref();
            if chunk.len() as u64 > sink.missing() {
                let error = Error::Size {
                    what: what.to_owned(),
                    host: answer.host.clone(),
                    got: None,
                    size: sink.blob.size(),
                };
                sink.restart()?;
                return Err(error.into());
            }
            sink.write(chunk)?;
            progress(sink.progress());
            piece += chunk.len() as u64;
            if piece >= PIECE {
                piece = 0;
                idle_at = Instant::now() + idle;
            }
            window += chunk.len() as u64;
            if window >= LEAST {
                window = 0;
                slow_at = Instant::now() + pace;
            }
        }
        if sink.missing() > 0 {
            return Err(Failure::passing(Error::Truncated {
                what: what.to_owned(),
                host: answer.host.clone(),
                got: sink.done,
                size: sink.blob.size(),
            }));
        }
        Ok(())
    }
}

/// Does a partial answer begin at this byte (`Content-Range: bytes 7-9/10`)?
fn starts_at(answer: &Answer, from: u64) -> bool {
    let value = answer.response.headers().get(CONTENT_RANGE);
    let start = value
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.trim().strip_prefix("bytes"))
        .and_then(|text| text.trim_start().split_once('-'))
        .and_then(|(start, _)| start.parse::<u64>().ok());
    start == Some(from)
}

impl<'a> Sink<'a> {
    /// Takes what a file holds for the beginning of a blob.
    async fn open(file: &'a mut File, blob: &'a Descriptor) -> Result<Self, Error> {
        let hash = Verifier::new(blob.digest()).ok_or_else(|| Error::Options {
            why: format!("content cannot be checked by the digest {}", blob.digest()),
        })?;
        let mut sink = Self {
            file,
            blob,
            hash,
            done: 0,
            inherited: false,
        };
        let length = sink.file.metadata().map_err(sink.failed("examine"))?.len();
        if length > blob.size() {
            sink.restart()?;
            return Ok(sink);
        }
        sink.rewind()?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = sink.file.read(&mut buffer).map_err(sink.failed("read"))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            if bytes.len() as u64 > sink.missing() {
                sink.restart()?;
                return Ok(sink);
            }
            sink.hash.update(bytes);
            sink.done += bytes.len() as u64;
            // It can be gigabytes; others want to go on meanwhile.
            tokio::task::yield_now().await;
        }
        sink.inherited = sink.done > 0;
        Ok(sink)
    }

    fn missing(&self) -> u64 {
        self.blob.size().saturating_sub(self.done)
    }

    fn is_right(&self) -> bool {
        self.hash.clone().finish() == self.blob.digest().as_ref()
    }

    fn progress(&self) -> Progress<'a> {
        Progress {
            digest: self.blob.digest(),
            done: self.done,
            total: self.blob.size(),
        }
    }

    /// Forgets everything.
    fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(self.failed("empty"))?;
        self.rewind()?;
        if let Some(hash) = Verifier::new(self.blob.digest()) {
            self.hash = hash;
        }
        self.done = 0;
        self.inherited = false;
        Ok(())
    }

    fn rewind(&mut self) -> Result<(), Error> {
        let sought = self.file.seek(SeekFrom::Start(0));
        sought.map(drop).map_err(self.failed("rewind"))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Err(error) = self.file.write_all(bytes) {
            // Part of it may be there, which the hash has not seen.
            let _ = self.file.set_len(self.done);
            let _ = self.file.seek(SeekFrom::Start(self.done));
            return Err(self.failed("write")(error));
        }
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let digest = Box::new(self.blob.digest().clone());
        move |source| Error::File {
            what,
            digest,
            source,
        }
    }
}
