//! Draws a [`Model`] into a buffer: a pure function of the model and the size.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;

use super::model::{History, Link, Model, Sort};
use crate::client::show::{self, Colour, Column};
use crate::client::status::{self, STATE};
use crate::control::{Snapshot, Worker};

/// The columns of the table: those of `status` without the last end, which the line about the selected worker has.
const COLUMNS: [Column; 10] = {
    let [slot, pid, generation, state, up, cpu, memory, queue, drops, restarts, _last_end] = status::COLUMNS;
    let restarts = Column { width: 4, ..restarts };
    [slot, pid, generation, state, up, cpu, memory, queue, drops, restarts]
};

const CPU: usize = 5;
const MEMORY: usize = 6;

/// The least width of a sparkline, before the heads are shortened.
const LEAST_SPARK: usize = 4;

/// The most of it.
const MOST_SPARK: usize = 60;

/// How the rows of the screen are shared out, from its top to its bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Layout {
    head: usize,
    /// The rows of workers, without the head of the table.
    pub(super) workers: usize,
    /// Whether there is a line that says which of the workers these are.
    is_part: bool,
    problems: usize,
    /// Whether there is a line about the selected worker.
    has_detail: bool,
    events: usize,
    has_keys: bool,
}

impl Layout {
    /// The least a screen shows is one row of the head, the head of the table, a worker and the keys.
    pub(super) fn of(model: &Model, height: usize) -> Layout {
        if height < 4 {
            return Layout { head: height.min(1), has_keys: height > 1, ..Layout::default() };
        }
        let needed = model.rows.len();
        // With the line of the keys, and the head of the table.
        let head = if height >= 10 { 3 } else { 1 };
        let mut left = height - head - 2;
        let has_detail = left >= 6;
        left -= usize::from(has_detail);
        let problems = problem_lines(model).len().min(left / 3);
        let least_events = (left / 4).min(4);
        let room = left - problems - least_events;
        let is_part = needed > room && room > 1;
        let workers = needed.min(room - usize::from(is_part));
        let events = left - problems - workers - usize::from(is_part);
        Layout { head, workers, is_part, problems, has_detail, events, has_keys: true }
    }
}

/// Draws everything. `colours`: whether to use any.
pub(super) fn draw(model: &Model, name: &str, colours: bool, buffer: &mut Buffer) {
    let area = buffer.area;
    let mut page = Page { buffer, area, y: 0, colours };
    let layout = Layout::of(model, area.height.into());
    page.head(model, name, layout.head);
    if model.shows_help {
        let help = HELP.map(|line| show::wrapped(line, Some(area.width.into()), key_width(line))).concat();
        page.lines(
            help.lines().collect::<Vec<_>>().into_iter(),
            usize::from(area.height).saturating_sub(layout.head + 1),
        );
    } else if area.height >= 4 {
        page.table(model, &layout);
        page.lines(problem_lines(model).iter().map(String::as_str), layout.problems);
        if layout.has_detail {
            page.detail(model);
        }
        let skipped = model.events.len().saturating_sub(layout.events);
        page.lines(model.events.iter().skip(skipped).map(String::as_str), layout.events);
    }
    if layout.has_keys {
        page.keys(model);
    }
}

/// What is wrong with the workers. What does not fit is in `status`.
fn problem_lines(model: &Model) -> Vec<String> {
    let Some(snapshot) = &model.snapshot else { return Vec::new() };
    let text: String = status::problems(snapshot).iter().map(|problem| problem.lines(None)).collect();
    text.lines().map(str::to_owned).collect()
}

/// The part of the screen that is not drawn yet.
struct Page<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    y: u16,
    colours: bool,
}

impl Page<'_> {
    fn width(&self) -> usize {
        self.area.width.into()
    }

    /// Writes at a place of the current line. What is beyond the screen is cut off.
    fn put(&mut self, x: usize, text: &str, style: Style) {
        let (Ok(x), true) = (u16::try_from(x), self.y < self.area.height) else { return };
        if x < self.area.width {
            let room = usize::from(self.area.width - x);
            self.buffer.set_stringn(self.area.x + x, self.area.y + self.y, text, room, style);
        }
    }

    fn next_line(&mut self) {
        self.y += 1;
    }

    /// The lines, `count` of them: further ones are counted in the last one.
    fn lines<'l>(&mut self, lines: impl ExactSizeIterator<Item = &'l str>, count: usize) {
        let (all, width) = (lines.len(), self.width());
        for (at, line) in lines.enumerate().take(count) {
            let text = if at + 1 == count && all > count {
                format!("... and {} more lines", all - at)
            } else {
                show::cut(line, width)
            };
            self.put(0, &text, Style::new());
            self.next_line();
        }
        // What is left of them stays empty.
        self.y = self.y.saturating_add(u16::try_from(count.saturating_sub(all)).unwrap_or(u16::MAX));
    }

    fn colour(&self, colour: Colour) -> Style {
        let colour = match colour {
            Colour::Good => Color::Green,
            Colour::Passing => Color::Yellow,
            Colour::Bad => Color::Red,
        };
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn head(&mut self, model: &Model, name: &str, count: usize) {
        let width = self.width();
        let (lines, words, colour) = match (&model.link, &model.snapshot) {
            (Link::Lost(why), _) => {
                let words = "not running";
                let second = "connecting again every second; q: quit with exit code 3".to_owned();
                let lines = vec![format!("{name}  {words}: {why}"), second];
                (lines, words.to_owned(), Colour::Bad)
            }
            (Link::Silent, _) => {
                let words = "no answer";
                let second = "waiting for it; q: quit with exit code 4".to_owned();
                let lines = vec![format!("{name}  {words}: the supervisor is stopped or busy"), second];
                (lines, words.to_owned(), Colour::Bad)
            }
            (Link::Up, None) => (vec![format!("{name}  connected")], "connected".to_owned(), Colour::Passing),
            (Link::Up, Some(snapshot)) => {
                let (words, colour) = status::state_words(snapshot);
                (head_lines(snapshot, width), words, colour)
            }
        };
        for line in lines.iter().take(count) {
            let line = show::cut(line, width);
            self.put(0, &line, Style::new());
            if self.y == 0
                && let Some(at) = line.find(&words)
            {
                let x = line[..at].chars().count();
                let style = self.colour(colour);
                self.put(x, &words, style);
            }
            self.next_line();
        }
        self.y = u16::try_from(count).unwrap_or(u16::MAX);
    }

    fn table(&mut self, model: &Model, layout: &Layout) {
        let first = first_row(model, layout.workers);
        let rows: Vec<(usize, &Worker)> =
            (first..first + layout.workers).filter_map(|row| Some((row, model.worker(row)?))).collect();
        let is_stale = model.link != Link::Up;
        let table = Table::of(model, self.width());
        let heads = COLUMNS.iter().map(|column| column.head[usize::from(table.is_narrow)].to_owned());
        let heads = table.line(&heads.collect::<Vec<_>>(), [String::new(), String::new()], ' ');
        let dim = Style::new().add_modifier(Modifier::BOLD);
        self.table_line(&heads, dim);
        for (row, worker) in rows {
            let is_selected = row == model.selected;
            let cells = cells(worker, table.is_narrow);
            let history = model.histories.get(&(worker.slot, worker.pid));
            let line =
                table.line(&cells, sparks(worker, history, table.spark), if is_selected { '>' } else { ' ' });
            let mut style = Style::new();
            if is_selected {
                style = style.add_modifier(Modifier::REVERSED);
            }
            if is_stale {
                style = style.add_modifier(Modifier::DIM);
            }
            let y = self.y;
            self.table_line(&line, style);
            if !is_stale && table.state + cells[STATE].chars().count() <= self.width() {
                self.y = y;
                let style = style.patch(self.colour(Colour::of(worker.state)));
                self.put(table.state, &cells[STATE], style);
                self.next_line();
            }
        }
        if layout.is_part {
            let (last, all) = (first + layout.workers, model.rows.len());
            self.put(
                0,
                &show::cut(&format!("rows {} to {last} of {all}", first + 1), self.width()),
                Style::new(),
            );
            self.next_line();
        }
    }

    fn table_line(&mut self, line: &str, style: Style) {
        let width = self.width();
        // Cut off visibly, where even the shortest columns are wider than the terminal.
        let line = show::cut(line.trim_end(), width);
        self.put(0, &format!("{line:width$}"), style);
        self.next_line();
    }

    /// What the table has no room for.
    fn detail(&mut self, model: &Model) {
        if let Some(worker) = model.worker(model.selected) {
            let mut words = vec![format!("slot {}", worker.slot)];
            words.extend(worker.memory_peak_bytes.map(|peak| format!("peak {}", show::size_of(peak))));
            words.extend(worker.memory_limit_bytes.map(|limit| format!("limit {}", show::size_of(limit))));
            words.extend(worker.cpu_limit_percent.map(|limit| format!("cpu limit {limit:.0}%")));
            words.extend(worker.queue_limit.map(|limit| format!("queue limit {limit}")));
            let end = worker.last_end.as_ref().map(|end| {
                let ago = show::ago(&end.at).map(|ago| format!(" {} ago", show::span(ago)));
                format!("last end: {}{}", end.words(), ago.unwrap_or_default())
            });
            words.extend(end);
            let text = show::cut(&words.join("  "), self.width());
            self.put(0, &text, Style::new().add_modifier(Modifier::BOLD));
        }
        self.next_line();
    }

    /// The last line: a question, an answer, or the keys.
    fn keys(&mut self, model: &Model) {
        self.y = self.area.height - 1;
        let width = self.width();
        let (text, style) = match (&model.prompt, &model.notice) {
            (Some(prompt), _) => (prompt.text(), Style::new().add_modifier(Modifier::BOLD)),
            (None, Some(notice)) if notice.is_error => (notice.text.clone(), self.colour(Colour::Bad)),
            (None, Some(notice)) => (notice.text.clone(), Style::new()),
            (None, None) => (keys(model, width), Style::new()),
        };
        let text = show::cut(&text, width);
        self.put(0, &text, style);
    }
}

fn head_lines(snapshot: &Snapshot, width: usize) -> Vec<String> {
    status::head(snapshot, Some(width), false).lines().map(str::to_owned).collect()
}

/// The keys in words, as many as there is room for. `?` has all of them.
fn keys(model: &Model, width: usize) -> String {
    let paused = model.snapshot.as_ref().is_some_and(|snapshot| snapshot.limits_paused);
    let limits = if paused { "p resume" } else { "p pause" };
    let sort = match model.sort {
        Sort::Slot => "s sort".to_owned(),
        Sort::Cpu | Sort::Memory | Sort::Queue | Sort::Restarts => format!("s sort: {}", model.sort.word()),
    };
    let long = format!("? help  q quit  R reload  r restart  + - scale  {limits}  {sort}");
    let short = format!("? help  q quit  R reload  r restart  + -  {limits}  s sort");
    [long, short]
        .into_iter()
        .find(|text| text.chars().count() <= width)
        .unwrap_or("? help  q quit".to_owned())
}

const HELP: [&str; 12] = [
    "up, down, k, j     select a worker; also PgUp, PgDn, Home, End",
    "R                  reload: replace all workers",
    "r                  restart: replace the worker of the selected slot",
    "+ -                scale: more or fewer workers",
    "p                  pause or resume the resource limits of all workers",
    "s                  sort by slot, cpu, memory, queue, restarts",
    "q, Ctrl-C          quit",
    "Ctrl-Z             suspend; the shell's fg continues",
    "Ctrl-L             draw everything again",
    "",
    "R, r, + and - ask first; y is yes.",
    "The bars are the last seconds of CPU and memory, the newest at the right. A full bar is the limit. Without a \
     limit, a full bar of CPU is one CPU, or as many as the worker has used, and half a bar of memory is the most \
     that was seen.",
];

/// Where the words begin that say what a key does; 0 in a line about no key.
fn key_width(line: &str) -> usize {
    line.rfind("  ").map_or(0, |at| at + 2)
}

/// The first row that is shown, so that the selected one is.
fn first_row(model: &Model, shown: usize) -> usize {
    let last_first = model.rows.len().saturating_sub(shown);
    (model.selected + 1).saturating_sub(shown).min(last_first)
}

/// The cells of a worker, without its last end.
fn cells(worker: &Worker, is_narrow: bool) -> Vec<String> {
    let mut cells = status::row(worker);
    cells.truncate(COLUMNS.len());
    if is_narrow {
        cells[MEMORY] =
            cells[MEMORY].replace(" B", "B").replace(" KiB", "K").replace(" MiB", "M").replace(" GiB", "G");
    }
    cells
}

/// The widths of the columns.
struct Table {
    widths: Vec<usize>,
    spark: usize,
    is_narrow: bool,
    /// Where the states begin.
    state: usize,
}

impl Table {
    /// Shortens the heads, the cells and the sparklines before anything is cut off. All rows count, so that moving does not
    /// change the widths.
    fn of(model: &Model, width: usize) -> Table {
        let (wide, narrow) = (Table::widths(model, false), Table::widths(model, true));
        // A mark, and two sparklines with a space before them.
        let room =
            |widths: &[usize]| width.checked_sub(1 + widths.iter().sum::<usize>() + widths.len() - 1 + 2);
        let is_narrow = room(&wide).is_none_or(|room| room < 2 * LEAST_SPARK);
        let widths = if is_narrow { narrow } else { wide };
        let spark = (room(&widths).unwrap_or_default() / 2).clamp(1, MOST_SPARK);
        let state = 1 + widths[..STATE].iter().map(|width| width + 1).sum::<usize>();
        Table { widths, spark, is_narrow, state }
    }

    fn widths(model: &Model, is_narrow: bool) -> Vec<usize> {
        let least = |column: &Column| {
            let head = column.head[usize::from(is_narrow)].len();
            if is_narrow { head } else { head.max(column.width) }
        };
        let mut widths: Vec<usize> = COLUMNS.iter().map(least).collect();
        for worker in model.snapshot.iter().flat_map(|snapshot| &snapshot.workers) {
            for (width, cell) in widths.iter_mut().zip(cells(worker, is_narrow)) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    fn line(&self, cells: &[String], sparks: [String; 2], mark: char) -> String {
        let mut line = mark.to_string();
        let [cpu, memory] = sparks;
        for (at, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            if at > 0 {
                line.push(' ');
            }
            line.push_str(&if COLUMNS[at].left {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            });
            let spark = match at {
                CPU => &cpu,
                MEMORY => &memory,
                _none => continue,
            };
            line.push_str(&format!(" {spark:<0$}", self.spark));
        }
        line
    }
}

/// The sparklines of CPU and memory.
fn sparks(worker: &Worker, history: Option<&History>, width: usize) -> [String; 2] {
    let Some(history) = history else { return [String::new(), String::new()] };
    #[expect(clippy::cast_precision_loss, reason = "a bar has eight steps")]
    let bytes: Vec<f64> = history.memory.iter().map(|bytes| *bytes as f64).collect();
    let cpu: Vec<f64> = history.cpu.iter().copied().collect();
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    // Without a limit whole CPUs, so that the scale does not follow each sample.
    let cpus = || (most(&cpu) / 100.0).ceil().max(1.0) * 100.0;
    let most_cpu = worker.cpu_limit_percent.filter(|limit| *limit > 0.0).unwrap_or_else(cpus);
    #[expect(clippy::cast_precision_loss, reason = "a bar has eight steps")]
    let limit = worker.memory_limit_bytes.map(|limit| limit as f64);
    // Without a limit no bar is full: the peak is half of one.
    let full = limit.unwrap_or_else(|| 2.0 * most(&bytes)).max(1.0);
    [spark(&cpu, most_cpu, width), spark(&bytes, full, width)]
}

/// The newest values as bars, the newest at the right.
fn spark(values: &[f64], full: f64, width: usize) -> String {
    let shown = &values[values.len().saturating_sub(width)..];
    let bars = shown.iter().map(|value| bar_of(value / full));
    std::iter::repeat_n(" ", width - shown.len()).chain(bars).collect()
}

/// A full bar is the limit, and only that.
fn bar_of(part: f64) -> &'static str {
    const BARS: [&str; 8] = [
        bar::ONE_EIGHTH,
        bar::ONE_QUARTER,
        bar::THREE_EIGHTHS,
        bar::HALF,
        bar::FIVE_EIGHTHS,
        bar::THREE_QUARTERS,
        bar::SEVEN_EIGHTHS,
        bar::FULL,
    ];
    let steps = [1.0 / 7.0, 2.0 / 7.0, 3.0 / 7.0, 4.0 / 7.0, 5.0 / 7.0, 6.0 / 7.0, 1.0];
    BARS[steps.iter().filter(|step| part >= **step).count()]
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::Key;
    use super::super::model::tests::example;
    use super::*;
    use crate::control::WorkerState;

    fn terminal(model: &Model, width: u16, height: u16, colours: bool) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(model, "api", colours, frame.buffer_mut())).expect("drawn");
        terminal
    }

    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let terminal = terminal(model, width, height, false);
        let cells = terminal.backend().buffer().content();
        let line = |cells: &[ratatui::buffer::Cell]| {
            let text: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            text.trim_end().to_owned()
        };
        cells.chunks(width.into()).map(line).collect()
    }

    /// A model with so many slots.
    fn large(slots: u32) -> Model {
        let mut model = example();
        let mut snapshot = model.snapshot.take().expect("there is one");
        let worker = snapshot.workers[0].clone();
        snapshot.workers = (0..slots).map(|slot| Worker { slot, ..worker.clone() }).collect();
        model.update(snapshot);
        model
    }

    #[test]
    fn eighty_columns_show_everything() {
        let screen = screen(&example(), 80, 24);
        let text = screen.join("\n");
        assert!(screen[0].starts_with("api  degraded: 3 of 4 ready   "), "{text}");
        assert!(screen[0].ends_with("   pid 27667  up 6d 4h  v0.4.0"), "{text}");
        for head in ["SLOT", "PID", "GEN", "STATE", "UP", "CPU", "MEMORY", "QUEUE", "DROPS", "RESTARTS"] {
            assert!(screen[3].contains(head), "{head}: {text}");
        }
        assert!(screen[4].starts_with(">   0  27671   13 ready "), "{text}");
        assert!(screen[6].contains("hung") && screen[8].contains("serving"), "{text}");
        assert!(text.contains("slot 2  accepts nothing on [::]:3000 since 41s"), "{text}");
        assert!(text.contains("10:48:18.961 worker.hung slot 2"), "{text}");
        assert!(text.contains("limit 1.2 GiB"), "{text}");
        assert!(screen[23].starts_with("? help  q quit  R reload"), "{text}");
    }

    #[test]
    fn narrow_terminals_shorten_every_column() {
        for width in [60, 70, 80, 120] {
            let screen = screen(&example(), width, 24);
            let text = screen.join("\n");
            let heads = screen[3..6].iter().find(|line| line.starts_with(" SLOT")).expect("a head");
            for head in ["SLOT", "PID", "GEN", "STATE", "UP", "CPU", "MEM", "Q", "DR", "RST"] {
                let head = if width > 80 && head == "RST" { "RESTARTS" } else { head };
                let any = heads.contains(head) || (head == "RST" && heads.contains("RESTARTS"));
                assert!(any, "{width}, {head}: {text}");
            }
            assert!(!heads.contains('…'), "{width}: {text}");
            let first = screen.iter().find(|line| line.starts_with('>')).expect("a row");
            assert!(first.contains('▃'), "a bar of 42 %, {width}: {text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_off_visibly() {
        let screen = screen(&example(), 30, 24);
        assert!(screen[3].ends_with('…') && screen[4].ends_with('…'), "{}", screen.join("\n"));
        assert_eq!(screen[23], "? help  q quit");
    }

    #[test]
    fn a_screen_of_any_size_can_be_drawn() {
        let mut long = large(100);
        for _ in 0..50 {
            long.press(Key::Down, 1);
        }
        let mut lost = example();
        lost.lost("it has ended");
        let mut help = example();
        help.press(Key::Char('?'), 1);
        for model in [&Model::new(), &example(), &long, &lost, &help] {
            for height in (1..16).chain([24, 40]) {
                for width in [1, 2, 9, 20, 45, 59, 60, 61, 80, 120, 300] {
                    let screen = screen(model, width, height);
                    if model.rows.len() == 100 && height >= 4 && width > 20 {
                        assert!(screen.iter().any(|line| line.starts_with('>')), "{width} {height}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_part_of_the_rows_says_which() {
        let mut model = large(100);
        let text = screen(&model, 80, 24).join("\n");
        assert!(text.contains(" of 100") && text.contains("rows 1 to "), "{text}");
        model.press(Key::End, 1);
        let text = screen(&model, 80, 24).join("\n");
        assert!(text.contains(" to 100 of 100") && text.contains(">  99 "), "{text}");
        assert!(screen(&large(8), 80, 24).iter().all(|line| !line.starts_with("rows ")));
    }

    #[test]
    fn few_rows_keep_the_table_and_the_keys() {
        let screen = screen(&example(), 80, 6);
        let text = screen.join("\n");
        assert!(screen[0].starts_with("api  degraded: 3 of 4 ready"), "{text}");
        assert!(screen[1].starts_with(" SLOT") && screen[2].starts_with(">   0"), "{text}");
        assert!(text.contains("rows 1 to ") && screen[5].starts_with("? help"), "{text}");
    }

    #[test]
    fn colour_is_on_the_states_alone() {
        let model = example();
        let painted = terminal(&model, 80, 24, true);
        let colours = |terminal: &Terminal<TestBackend>, y: u16| -> Vec<(String, Color)> {
            let buffer = terminal.backend().buffer();
            let cell = |x: u16| buffer.cell((x, y)).map(|cell| (cell.symbol().to_owned(), cell.fg));
            (0..80).filter_map(cell).filter(|(_, colour)| *colour != Color::Reset).collect()
        };
        let word = |cells: Vec<(String, Color)>| {
            let colour = cells.first().map(|(_, colour)| *colour);
            (cells.into_iter().map(|(symbol, _)| symbol).collect::<String>(), colour)
        };
        assert_eq!(word(colours(&painted, 0)), ("degraded: 3 of 4 ready".to_owned(), Some(Color::Red)));
        assert_eq!(word(colours(&painted, 4)), ("ready".to_owned(), Some(Color::Green)));
        assert_eq!(word(colours(&painted, 6)), ("hung".to_owned(), Some(Color::Red)));
        assert_eq!(word(colours(&painted, 7)), ("starting".to_owned(), Some(Color::Yellow)));
        let plain = terminal(&model, 80, 24, false);
        assert!((0..24).all(|y| colours(&plain, y).is_empty()));
    }

    #[test]
    fn a_lost_supervisor_is_said() {
        let mut model = example();
        model.lost("it has ended");
        let text = screen(&model, 80, 24).join("\n");
        assert!(text.starts_with("api  not running: it has ended\n"), "{text}");
        assert!(text.contains("exit code 3"), "{text}");
        model.link = Link::Silent;
        assert!(screen(&model, 80, 24)[0].starts_with("api  no answer"));
    }

    #[test]
    fn a_question_takes_the_last_line() {
        let mut model = example();
        model.press(Key::Char('+'), 1);
        assert!(screen(&model, 80, 24)[23].starts_with("scale from 4 to 5? y: yes"));
        model.press(Key::Char('n'), 1);
        model.refused("there is no slot 9");
        assert_eq!(screen(&model, 80, 24)[23], "there is no slot 9");
        model.press(Key::Char('?'), 1);
        assert!(screen(&model, 80, 24)[4].starts_with("R  "));
    }

    #[test]
    fn a_full_bar_is_the_limit() {
        assert_eq!(spark(&[0.0, 49.0, 99.0, 100.0, 150.0], 100.0, 6), " ▁▄▇██");
        assert_eq!(spark(&[0.0, 0.0, 100.0], 100.0, 1), "█");
    }

    #[test]
    fn every_state_has_room() {
        let mut model = large(8);
        let mut snapshot = model.snapshot.take().expect("there is one");
        for (worker, state) in snapshot.workers.iter_mut().zip([
            WorkerState::Starting,
            WorkerState::Ready,
            WorkerState::Serving,
            WorkerState::Hung,
            WorkerState::OverLimit,
            WorkerState::Draining,
            WorkerState::Stopping,
            WorkerState::Waiting,
        ]) {
            worker.state = state;
        }
        model.update(snapshot);
        let text = screen(&model, 60, 40).join("\n");
        let words = ["starting", "serving", "hung", "over_limit", "draining", "stopping", "waiting"];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}
