//! smtp - the protocol, both sides, without a socket
//!
//! `reply` and `dot` are the grammar, `session` the client, `server` the server. None of them reads
//! a clock or a descriptor: they take bytes and give bytes. `stream` is where the sockets are.

mod backend;
pub mod capability;
mod command;
pub mod dot;
pub mod reply;
pub mod server;
pub mod session;
mod stage;
pub mod stream;
mod transaction;
