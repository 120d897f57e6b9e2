//! `samport top`: a running samport on the screen, as it changes. What is shown is worked out in
//! [`history`], [`screen`] and [`draw`], which know neither terminal nor socket; here they get both.

mod columns;
mod draw;
mod history;
#[cfg(test)]
mod samples;
mod screen;

use std::io::{IsTerminal as _, stdin, stdout};
use std::time::{Duration, SystemTime};

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context as _, Result};
use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::history::Documents;
use self::screen::{Act, Screen};
use super::commands::carry_out;
use super::connection::Connection;
use super::run::stop_signal;
use crate::api::types::{Backends, Status};
use crate::control::commands::OperatorCommand;
use crate::model::duration::read as time;
use crate::system::exit::{Exit, coded};

/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(100);
/// Answers that wait to be drawn.
const WAITING: usize = 4;

/// Options of `samport top`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Refresh this often
    ///
    /// 100ms or more.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = pause)]
    interval: Duration,
    #[command(flatten)]
    connection: Connection,
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = time(text)?;
    if pause < SHORTEST {
        return Err(format!("invalid time {text:?}: expected 100ms at least"));
    }
    Ok(pause)
}

/// What comes from samport.
enum News {
    Seen(Result<Box<Documents>>),
    Done(Result<String>),
}

/// Shows it until the user leaves.
///
/// # Errors
/// [`Exit::Usage`] without a terminal; [`Exit::Unreachable`] if no samport answers at the beginning.
pub async fn run(args: Args) -> Result<()> {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        let message = "`samport top` needs a terminal; `samport status` and `samport backends` print the \
                       same, for scripts with -o json";
        return Err(coded(Exit::Usage, message));
    }
    let begin = Instant::now();
    let first = look(&args.connection).await?;
    let stop = stop_signal()?;
    let is_coloured = AutoStream::choice(&stdout()) != ColorChoice::Never;
    let screen = Screen::new(first, begin.elapsed(), is_coloured);
    // Panics give the terminal back, too.
    let mut terminal = ratatui::try_init().context("cannot take the terminal over")?;
    let shown = show(&mut terminal, screen, args, (begin, stop)).await;
    let restored = ratatui::try_restore().context("cannot give the terminal back");
    shown.and(restored)
}

async fn show(
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    args: Args,
    (begin, stop): (Instant, impl Future<Output = ()>),
) -> Result<()> {
    tokio::pin!(stop);
    let mut keys = EventStream::new();
    // Not immediately: what was seen first is fresh.
    let mut ticks = interval_at(Instant::now() + args.interval, args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (teller, mut news) = mpsc::channel(WAITING);
    let connection = std::sync::Arc::new(args.connection);
    let mut is_asked = false;
    loop {
        screen.clock = begin.elapsed();
        screen.time_of_day = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        terminal.draw(|frame| draw::draw(frame, &screen)).context("draw")?;
        let (teller, connection) = (teller.clone(), connection.clone());
        tokio::select! {
            () = &mut stop => return Ok(()),
            event = keys.next() => match event.transpose().context("cannot read the terminal")? {
                None => return Ok(()),
                Some(Event::Key(key)) if !key.is_release() => match screen.press(key) {
                    Some(Act::Quit) => return Ok(()),
                    Some(Act::CarryOut(order)) => {
                        tokio::spawn(async move {
                            let _ = teller.send(News::Done(order_of(&connection, order).await)).await;
                        });
                    }
                    None => {}
                },
                // Another size: it is drawn again.
                Some(_) => {}
            },
            _ = ticks.tick(), if !is_asked => {
                is_asked = true;
                tokio::spawn(async move {
                    let _ = teller.send(News::Seen(look(&connection).await.map(Box::new))).await;
                });
            }
            Some(news) = news.recv() => match news {
                News::Seen(seen) => {
                    is_asked = false;
                    let seen = seen.map(|seen| *seen).map_err(|error| format!("{error:#}"));
                    screen.see(seen, begin.elapsed());
                }
                News::Done(Ok(said)) => screen.say(said),
                News::Done(Err(error)) => screen.say(format!("not done: {error:#}")),
            }
        }
    }
}

/// What samport says now. It is looked for every time: samport may have been restarted.
async fn look(connection: &Connection) -> Result<Documents> {
    let client = connection.client()?;
    let status: Status = client.get("/v1/status").await?;
    let Backends { backends, .. } = client.get("/v1/backends").await?;
    let instance = status.instances.into_iter().next().context("it says nothing of itself")?;
    Ok(Documents { instance, backends })
}

/// Has an order carried out: how its backend is now.
async fn order_of(connection: &Connection, order: OperatorCommand) -> Result<String> {
    let Backends { backends, .. } = carry_out(&connection.client()?, &order).await?;
    let said =
        backends.first().map(|one| format!("{}: {}, weight {}", one.name, one.state, one.weight));
    Ok(said.unwrap_or_else(|| "done".to_owned()))
}
