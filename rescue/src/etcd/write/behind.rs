//! Writing behind: what is to be written is made by one thread and given to the disk by another.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::Result;

use crate::change::folder::SinkFile;

/// What is handed over at once.
const AT_ONCE: usize = 256 << 10;
/// What one call writes. For more the kernel looks for large pieces of its own memory, which takes
/// longer where that is in use.
const ONE_CALL: usize = 64 << 10;
/// Buffers under way.
const BUFFERS: usize = 3;

/// Lets `make` write; `out` gets everything in the same order from another thread. What is not
/// flushed is not waited for, and its errors are not told.
///
/// # Errors
/// Those of `make`, which is told what `out` says at the latest when it flushes or seeks.
pub fn write<T>(
    out: &mut dyn SinkFile,
    make: impl FnOnce(&mut dyn SinkFile) -> Result<T>,
) -> Result<T> {
    let (orders, taken) = channel();
    let (answer, answers) = channel();
    let (empty, emptied) = channel();
    (0..BUFFERS).for_each(|_| drop(empty.send(Vec::with_capacity(AT_ONCE))));
    let writer = Writer {
        out,
        taken,
        answer,
        empty,
    };
    thread::scope(|scope| {
        let (start, started) = channel::<Writer<'_>>();
        let run = move || started.recv().map(Writer::run);
        if thread::Builder::new()
            .name("writing".to_owned())
            .spawn_scoped(scope, run)
            .is_err()
        {
            // There is no second thread to be had.
            let mut out = BufWriter::with_capacity(AT_ONCE, writer.out);
            let made = make(&mut out)?;
            out.flush()?;
            return Ok(made);
        }
        let _ = start.send(writer);
        let buffer = emptied.recv().unwrap_or_default();
        let mut out = Behind {
            orders,
            answers,
            emptied,
            buffer,
        };
        make(&mut out)
    })
}

enum Order {
    Write(Vec<u8>),
    Flush,
    Seek(SeekFrom),
}

struct Writer<'a> {
    out: &'a mut dyn SinkFile,
    taken: Receiver<Order>,
    answer: Sender<io::Result<u64>>,
    empty: Sender<Vec<u8>>,
}

impl Writer<'_> {
    /// Until an error, or until nobody has orders any more.
    fn run(self) {
        for order in self.taken {
            let done = match order {
                Order::Write(mut bytes) => match bytes
                    .chunks(ONE_CALL)
                    .try_for_each(|piece| self.out.write_all(piece))
                {
                    Ok(()) => {
                        bytes.clear();
                        let _ = self.empty.send(bytes);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Order::Flush => self.out.flush().map(|()| 0),
                Order::Seek(to) => self.out.seek(to),
            };
            let failed = done.is_err();
            if self.answer.send(done).is_err() || failed {
                return;
            }
        }
    }
}

struct Behind {
    orders: Sender<Order>,
    answers: Receiver<io::Result<u64>>,
    emptied: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Behind {
    fn hand_over(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::take(&mut self.buffer);
        if self.orders.send(Order::Write(full)).is_err() {
            return Err(self.failure());
        }
        match self.emptied.recv() {
            Ok(empty) => self.buffer = empty,
            Err(_) => return Err(self.failure()),
        }
        Ok(())
    }

    /// Why the other thread is gone.
    fn failure(&self) -> io::Error {
        match self.answers.recv() {
            Ok(Err(error)) => error,
            _ => io::Error::other("writing has ended already"),
        }
    }

    fn ask(&mut self, order: Order) -> io::Result<u64> {
        self.hand_over()?;
        if self.orders.send(order).is_err() {
            return Err(self.failure());
        }
        self.answers
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("writing has ended already")))
    }
}

impl Write for Behind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= AT_ONCE {
            self.hand_over()?;
        }
        let taken = bytes
            .get(..bytes.len().min(AT_ONCE - self.buffer.len()))
            .unwrap_or_default();
        self.buffer.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.ask(Order::Flush).map(drop)
    }
}

impl Seek for Behind {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.ask(Order::Seek(to))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn everything_comes_in_order() {
        let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut out = Cursor::new(Vec::new());
        let end = write(&mut out, |out| {
            bytes
                .chunks(77_777)
                .try_for_each(|piece| out.write_all(piece))?;
            let end = out.stream_position()?;
            out.seek(SeekFrom::Start(3))?;
            out.write_all(b"changed")?;
            out.flush()?;
            Ok(end)
        });
        let mut expected = bytes.clone();
        expected[3..10].copy_from_slice(b"changed");
        assert!(end.unwrap() == 5_000_000 && out.into_inner() == expected);
    }

    /// A disk that is full after a while.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn the_disk_s_own_error_is_told_early_or_late() {
        for (room, bytes) in [(5 << 20, 20 << 20), (100, 1000), (0, 1)] {
            let done = write(&mut Full(room), |out| {
                vec![7; bytes]
                    .chunks(9999)
                    .try_for_each(|piece| out.write_all(piece))?;
                out.flush()?;
                Ok(())
            });
            let error = done.unwrap_err().downcast::<io::Error>().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room}");
        }
    }

    #[test]
    fn an_error_of_the_maker_ends_both() {
        let mut out = Cursor::new(Vec::new());
        let done: Result<()> = write(&mut out, |out| {
            out.write_all(b"begun")?;
            anyhow::bail!("no more")
        });
        assert_eq!(done.unwrap_err().to_string(), "no more");
    }
}
