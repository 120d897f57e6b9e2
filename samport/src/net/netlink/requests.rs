//! Questions to the kernel, over a socket that carries nothing else: what the kernel tells of itself could fill it,
//! and answers would be lost for want of room.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use rtnetlink::{Error, Handle};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::timeout;

/// Longest wait for an answer. The kernel gives it during the system call that asks; a long list, and a busy
/// machine, take longer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// Questions at one time: their answers have room in the socket's smallest buffer.
const AT_A_TIME: usize = 32;

/// The socket, and who asks there.
pub(super) struct Requests {
    handle: Mutex<Handle>,
    permits: Semaphore,
    /// Held while a list is read: the kernel makes one at a time for a socket (EBUSY).
    list: AsyncMutex<()>,
}

impl Requests {
    pub(super) fn connect() -> io::Result<Self> {
        Ok(Self {
            handle: Mutex::new(connect()?),
            permits: Semaphore::new(AT_A_TIME),
            list: AsyncMutex::default(),
        })
    }

    /// Asks. The inner error is the kernel's answer; the outer one says that there was none to a question about
    /// `what`. Then the next one is asked on another socket.
    pub(super) async fn ask<T, A>(
        &self,
        what: &str,
        question: impl FnOnce(Handle) -> A,
    ) -> Result<Result<T, Error>>
    where
        A: Future<Output = Result<T, Error>>,
    {
        self.ask_within(ANSWER, what, question).await
    }

    /// The same for a list, of which one is read at a time.
    pub(super) async fn list<T, A>(
        &self,
        what: &str,
        question: impl FnOnce(Handle) -> A,
    ) -> Result<Result<T, Error>>
    where
        A: Future<Output = Result<T, Error>>,
    {
        let Ok(_turn) = timeout(ANSWER, self.list.lock()).await else {
            bail!("{what}: other lists take longer than {ANSWER:?}")
        };
        self.ask(what, question).await
    }

    async fn ask_within<T, A>(
        &self,
        limit: Duration,
        what: &str,
        question: impl FnOnce(Handle) -> A,
    ) -> Result<Result<T, Error>>
    where
        A: Future<Output = Result<T, Error>>,
    {
        let asked = async {
            // Never closed.
            let _permit = self.permits.acquire().await;
            let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone();
            question(handle).await
        };
        match timeout(limit, asked).await {
            Ok(Err(Error::RequestFailed)) => {
                self.reconnect()?;
                bail!("{what}: the connection to the kernel has ended; it is opened again")
            }
            Ok(answer) => Ok(answer),
            Err(_) => {
                self.reconnect()?;
                bail!("{what}: no answer from the kernel within {limit:?}")
            }
        }
    }

    fn reconnect(&self) -> io::Result<()> {
        let handle = connect()?;
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
        Ok(())
    }
}

fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    async fn links(requests: &Requests) -> usize {
        let list = |handle: Handle| async move {
            handle.link().get().execute().try_collect::<Vec<_>>().await
        };
        requests.list("list links", list).await.unwrap().unwrap().len()
    }

    #[tokio::test]
    async fn a_question_without_an_answer_is_an_error_that_names_it_and_the_next_one_is_answered() {
        let requests = Requests::connect().unwrap();
        let limit = Duration::from_millis(1);
        let never = |_| std::future::pending::<Result<(), Error>>();
        let error = requests.ask_within(limit, "list links", never).await.unwrap_err();
        assert_eq!(error.to_string(), "list links: no answer from the kernel within 1ms");
        assert!(links(&requests).await > 0);
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_opened_again() {
        let requests = Requests::connect().unwrap();
        let (connection, ended, _) = rtnetlink::new_connection().unwrap();
        drop(connection);
        *requests.handle.lock().unwrap() = ended;
        let list = |handle: Handle| async move {
            handle.link().get().execute().try_collect::<Vec<_>>().await
        };
        let error = requests.list("list links", list).await.unwrap_err();
        assert!(error.to_string().starts_with("list links: the connection"), "{error:#}");
        assert!(links(&requests).await > 0);
    }

    #[tokio::test]
    async fn more_questions_than_may_be_asked_at_a_time_wait_for_their_turn() {
        let requests = Requests::connect().unwrap();
        let all = (0..20 * AT_A_TIME).map(|_| links(&requests));
        let answers = futures_util::future::join_all(all).await;
        assert!(answers.iter().all(|links| *links > 0));
    }
}
