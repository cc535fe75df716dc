//! link - a connection of frames that never waits

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mio::{Interest, Token};
use worker_proto::multi::Reactor;

use crate::wire::{Decoder, Header};

pub(super) struct Link {
    stream: UnixStream,
    pub(super) decoder: Decoder,
    output: Vec<u8>,
    written: usize,
    failed: bool,
}

impl Link {
    /// Registers a connection for reading and writing.
    pub(super) fn watch(reactor: &mut Reactor, stream: UnixStream) -> io::Result<(Token, Self)> {
        let token = reactor.add(stream.as_fd(), Interest::READABLE | Interest::WRITABLE)?;
        let (decoder, output) = (Decoder::default(), Vec::new());
        Ok((token, Self { stream, decoder, output, written: 0, failed: false }))
    }

    /// Sends a frame, now or when the other end has room.
    pub(super) fn send(&mut self, header: &Header) {
        self.put(header);
        self.flush();
    }

    /// Puts a frame before the next one that is sent, or [`Link::flush`].
    pub(super) fn put(&mut self, header: &Header) {
        self.output.extend_from_slice(&header.encode());
    }

    /// Whether everything that was sent has gone.
    pub(super) const fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Writes and reads what it can. False: the other end is gone, or of no more use.
    pub(super) fn advance(&mut self) -> bool {
        self.flush();
        let mut bytes = vec![0; 64 << 10];
        // Edges are told once: to the end, however much there is.
        while !self.failed {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.failed = true,
                Ok(size) => self.decoder.push(&bytes[..size]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.failed = true,
            }
        }
        !self.failed
    }

    pub(super) fn flush(&mut self) {
        while self.written < self.output.len() && !self.failed {
            match self.stream.write(&self.output[self.written..]) {
                Ok(size) => self.written += size,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.failed = true,
            }
        }
        self.output.clear();
        self.written = 0;
    }
}
