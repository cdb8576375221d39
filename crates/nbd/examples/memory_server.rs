//! Serves memory, or a file, over NBD on a Unix socket: for trying clients and for measuring the lane alone.
//!
//!     cargo run --release -p sealblk-nbd --example memory_server -- SOCKET BYTES|FILE
//!
//! Ends on Ctrl-C and prints what it did.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;

use sealblk_block::{BlockDevice, ByteDevice, FileDevice, FileOptions, MemoryDevice, SECTOR_BYTES};
use sealblk_nbd::{ConnectionEvent, Events, ExportInfo, Limits, Listener, Server, Users};

struct Log;

impl Events for Log {
    fn connection(&mut self, connection: u64, event: ConnectionEvent<'_>) {
        eprintln!("connection {connection}: {event:?}");
    }
}

async fn serve<D: BlockDevice>(device: D, socket: &str) -> Result<(), Box<dyn Error>> {
    let socket_of_ours = tokio::net::UnixListener::bind(socket)?;
    let listener = Listener::Unix { socket: socket_of_ours, users: Users::Any };
    let info = ExportInfo::new("memory", &["mem"], "an example")?;
    let server = Server::new(ByteDevice::new(device), info, Limits::default());
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    println!("ready nbd+unix:///?socket={socket}");
    println!("{:?}", server.serve(vec![listener], interrupted, &mut Log).await);
    std::fs::remove_file(socket)?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, what] = arguments.as_slice() else {
        return Err("usage: memory_server SOCKET BYTES|FILE".into());
    };
    match what.parse::<u64>() {
        Ok(bytes) => serve(MemoryDevice::new(bytes / u64::try_from(SECTOR_BYTES)?), socket).await,
        Err(_) => serve(FileDevice::open(what.as_ref(), &FileOptions::default())?, socket).await,
    }
}
