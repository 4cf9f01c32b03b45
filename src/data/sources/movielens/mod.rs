//! MovieLens as GroupLens publishes it: 1M and 10M (`::`), 100K (tabs and `|`), latest, 25M and 32M
//! (CSV).
//!
//! | format | ratings | movies | tags |
//! |---|---|---|---|
//! | `dat` | `ratings.dat` | `movies.dat` | `tags.dat` |
//! | `100k` | `u.data` | `u.item` | |
//! | `csv` | `ratings.csv` | `movies.csv` | `tags.csv` |
//!
//! A file `*plots*.dat` beside them gives plots, directors and actors. Other files are not read.

mod tags;

use std::io::{BufRead, Read};

use self::tags::Tags;
use super::dataset::{Catalogue, RawDataset};
use super::delimited::{DelimitedFile, Dialect};
use super::encoding::Encoding;
use super::fields::{present, rating};
use super::files::max_rows;
use super::input::Input;
use super::lines::read_numbered_lines;
use super::options::ReadOptions;
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use super::times::Unit;
use crate::data::event_log::{EventLog, Events};
use crate::data::interner::Interner;
use crate::{Error, Result};

/// The shortest row of ratings: `1::1::5::978300760`.
const RATING_BYTES: u64 = 16;

/// The genre flags of `u.item`, in their order.
const GENRES: [&str; 19] = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Dat,
    Tabs,
    Csv,
}

impl Format {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "dat" => Ok(Self::Dat),
            "100k" => Ok(Self::Tabs),
            "csv" => Ok(Self::Csv),
            _ => Err(Error::usage(format!(
                "movielens has no format `{name}`: use dat (1M and 10M), 100k or csv (latest, 25M and 32M)"
            ))),
        }
    }

    /// Finds the format by the first line, or else by the name.
    fn find(path: &SourceFile) -> Result<Self> {
        let line = Input::first_line(path)?;
        let fields = |delimiter| line.split(delimiter).count();
        Ok(if line.contains("::") {
            Self::Dat
        } else if line.to_ascii_lowercase().contains("movieid,") {
            Self::Csv
        } else if fields('\t') == 4 || fields('|') > GENRES.len() {
            Self::Tabs
        } else {
            let name = path.plain_name();
            match name.rsplit_once('.') {
                Some((_, "csv")) => Self::Csv,
                Some((_, "dat")) => Self::Dat,
                _ => Self::Tabs,
            }
        })
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Dat => "MovieLens 1M/10M (`::`)",
            Self::Tabs => "MovieLens 100K (tabs)",
            Self::Csv => "MovieLens latest/25M/32M (CSV)",
        }
    }
}

/// Role of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Ratings,
    Movies,
    Tags,
    Plots,
}

impl Role {
    /// Returns the role of a file by its published name, perhaps after a prefix as in
    /// `ml-1m-ratings.dat.gz`.
    fn from_name(path: &SourceFile) -> Option<Self> {
        let name = path.plain_name();
        let is = |wanted: &str| {
            let before = name.strip_suffix(wanted);
            before.is_some_and(|before| !before.ends_with(|c: char| c.is_ascii_alphanumeric()) && before != "genome-")
        };
        let any = |wanted: &[&str]| wanted.iter().any(|wanted| is(wanted));
        if any(&["ratings.dat", "ratings.csv", "u.data"]) {
            Some(Self::Ratings)
        } else if any(&["movies.dat", "movies.csv", "u.item"]) {
            Some(Self::Movies)
        } else if any(&["tags.dat", "tags.csv"]) {
            Some(Self::Tags)
        } else if name.contains("plots") && name.ends_with(".dat") {
            Some(Self::Plots)
        } else {
            None
        }
    }
}

/// Reads ratings, titles, genres, tags and plots.
pub(crate) fn read(files: &[SourceFile], options: &ReadOptions, context: &mut ReadContext) -> Result<RawDataset> {
    let forced = options.format.as_deref().map(Format::parse).transpose()?;
    let format = |path: &SourceFile| forced.map_or_else(|| Format::find(path), Ok);
    let of = |role| files.iter().filter(move |path| Role::from_name(path) == Some(role));

    let ratings: Vec<&SourceFile> = of(Role::Ratings).collect();
    let Some(first) = ratings.first() else {
        return Err(Error::usage("movielens: no ratings among the inputs: ratings.dat, u.data or ratings.csv"));
    };
    let found = format(first)?;
    for path in &ratings {
        if format(path)? != found {
            let what = "holds ratings in another format than";
            return Err(Error::usage(format!("{} {what} {}: give one of them", path, first)));
        }
    }
    let rows = max_rows(ratings.iter().copied(), RATING_BYTES)?;
    let mut log = EventLog::new(rows, &options.workspace, true, true)?;
    for path in ratings {
        read_ratings(path, found, &mut log, context)?;
    }
    log.finish()?;

    let mut catalogue = Catalogue::default();
    if of(Role::Movies).next().is_none() {
        catalogue.missing = Some("no file of titles among the inputs: add movies.dat, u.item or movies.csv");
    }
    let unused = files.iter().filter(|path| Role::from_name(path).is_none());
    context.unused.extend(unused.map(|path| path.name().to_string()));
    let mut described = found.describe().to_string();
    for path in of(Role::Movies) {
        let encoding = read_movies(path, format(path)?, &log.items, &mut catalogue, context)?;
        if encoding == Encoding::Latin1 {
            described.push_str(", titles in ISO 8859-1");
        }
    }
    let mut tags = Tags::default();
    for path in of(Role::Tags) {
        tags.read(path, format(path)? == Format::Csv, &log.items, context)?;
    }
    tags.describe(&mut catalogue);
    for path in of(Role::Plots) {
        read_plots(path, &log.items, &mut catalogue, context)?;
        described.push_str(", with plots");
    }
    Ok(RawDataset { log, catalogue, format: described })
}

fn push(events: &mut Events, user: &str, item: &str, given: &str, time: &str) -> std::result::Result<(), String> {
    let (user, item, given) = (present(user, "user")?, present(item, "movie")?, rating(given)?);
    let seconds =
        present(time, "timestamp")?.parse().map_err(|_| format!("timestamp `{time}` is not a whole number"))?;
    events.push(user, item, Unit::Seconds.milliseconds(seconds)?, given);
    Ok(())
}

fn read_ratings(path: &SourceFile, format: Format, log: &mut EventLog, context: &mut ReadContext) -> Result<()> {
    let delimiter = match format {
        Format::Dat => "::",
        Format::Tabs => "\t",
        Format::Csv => {
            let records = DelimitedFile::open(path, Dialect::CSV)?;
            let [user, item, given, time] =
                ["userId", "movieId", "rating", "timestamp"].map(|name| records.column(name));
            let (user, item, given, time) = (user?, item?, given?, time?);
            return records.read(
                context,
                |_, record, events| {
                    let field = |at| record.get(at);
                    push(events, field(user), field(item), field(given), field(time))
                },
                |_, events: Events| log.append(&events),
            );
        }
    };
    read_numbered_lines(
        path,
        Encoding::Utf8,
        0,
        context,
        |_, line, events| {
            let mut fields = line.split(delimiter);
            let four = (fields.next(), fields.next(), fields.next(), fields.next(), fields.next());
            let (Some(user), Some(item), Some(given), Some(time), None) = four else {
                return Err(wrong_fields(4, delimiter, line.split(delimiter).count()));
            };
            push(events, user, item, given, time)
        },
        |_, events: Events| log.append(&events),
    )
}

pub(super) fn wrong_fields(wanted: usize, delimiter: &str, found: usize) -> String {
    format!("{wanted} fields divided by `{}` expected, {found} found", delimiter.escape_default())
}

/// Returns UTF-8 if the whole file is UTF-8, else ISO 8859-1.
pub(super) fn encoding(path: &SourceFile) -> Result<Encoding> {
    /// Lines are checked in parts of at most this many bytes.
    const PART: u64 = 1 << 24;
    let mut input = Input::peek(path)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input.content().take(PART).read_until(b'\n', &mut line);
        if read.map_err(|error| input.read_error(&error))? == 0 {
            return Ok(Encoding::Utf8);
        }
        if std::str::from_utf8(&line).is_err() {
            return Ok(Encoding::Latin1);
        }
    }
}

/// A row of a file of movies.
struct Movie {
    line: u64,
    id: String,
    title: String,
    genres: String,
}

impl Movie {
    fn new(line: u64, id: &str, title: &str, genres: String) -> std::result::Result<Self, String> {
        Ok(Self { line, id: present(id, "movie id")?.into(), title: title.into(), genres })
    }
}

/// Reads the titles and genres of a `movies.dat` for the items of a log, and returns how the file
/// is encoded.
pub(super) fn read_movies_dat(
    path: &SourceFile,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<Encoding> {
    read_movies(path, Format::Dat, items, catalogue, context)
}

fn read_movies(
    path: &SourceFile,
    format: Format,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<Encoding> {
    let mut take_in = |context: &mut ReadContext, movies: Vec<Movie>| -> Result<()> {
        for movie in movies {
            let Some(item) = items.find(&movie.id) else {
                catalogue.count_unmatched(&movie.id);
                continue;
            };
            if let Err(what) = catalogue.describe(item, &movie.title) {
                context.bad_row(path, movie.line, &what)?;
                continue;
            }
            if !movie.genres.is_empty() {
                catalogue.set_attribute("genres", item, &movie.genres);
            }
        }
        Ok(())
    };
    if format == Format::Csv {
        let records = DelimitedFile::open(path, Dialect::CSV)?;
        let [id, title, genres] = ["movieId", "title", "genres"].map(|name| records.column(name));
        let (id, title, genres) = (id?, title?, genres?);
        records.read(
            context,
            |line, record, movies: &mut Vec<Movie>| {
                let field = |at| record.get(at);
                movies.push(Movie::new(line, field(id), field(title), field(genres).to_string())?);
                Ok(())
            },
            take_in,
        )?;
        return Ok(Encoding::Utf8);
    }
    let encoding = encoding(path)?;
    let parse = if format == Format::Dat { parse_dat } else { parse_item };
    read_numbered_lines(
        path,
        encoding,
        0,
        context,
        |line, text, movies: &mut Vec<Movie>| {
            movies.push(parse(line, text)?);
            Ok(())
        },
        &mut take_in,
    )?;
    Ok(encoding)
}

/// Parses `id::title::genres`; the title may hold `::`.
fn parse_dat(line: u64, text: &str) -> std::result::Result<Movie, String> {
    let outer = text.split_once("::").and_then(|(id, rest)| Some((id, rest.rsplit_once("::")?)));
    let (id, (title, genres)) = outer.ok_or_else(|| wrong_fields(3, "::", text.split("::").count()))?;
    Movie::new(line, id, title, genres.to_string())
}

/// Parses `id|title|release|video release|address|` and a flag for each of [`GENRES`].
fn parse_item(line: u64, text: &str) -> std::result::Result<Movie, String> {
    let fields: Vec<&str> = text.split('|').collect();
    let wanted = 5 + GENRES.len();
    if fields.len() != wanted {
        return Err(wrong_fields(wanted, "|", fields.len()));
    }
    let mut genres: Vec<&str> = Vec::new();
    for (flag, genre) in fields.iter().skip(5).zip(GENRES) {
        match *flag {
            "0" => {}
            "1" => genres.push(genre),
            other => return Err(format!("the flag of {genre} is `{other}`, neither 0 nor 1")),
        }
    }
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    Movie::new(line, field(0), field(1), genres.join("|"))
}

/// Returns whether a file is one of plots.
pub(super) fn holds_plots(path: &SourceFile) -> bool {
    Role::from_name(path) == Some(Role::Plots)
}

/// Reads `id::title::year::rating::date::genres::director::writers::actors::plot::poster`; the plot
/// may hold `::`.
pub(super) fn read_plots(
    path: &SourceFile,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<()> {
    const FIELDS: usize = 11;
    read_numbered_lines(
        path,
        Encoding::Utf8,
        0,
        context,
        |_, line, plots: &mut Vec<(u32, [String; 3])>| {
            let fields: Vec<&str> = line.splitn(FIELDS - 1, "::").collect();
            let last = fields.get(FIELDS - 2).and_then(|rest| rest.rsplit_once("::"));
            let (Some((plot, _)), Some(id)) = (last, fields.first()) else {
                return Err(wrong_fields(FIELDS, "::", line.split("::").count()));
            };
            if let Some(item) = items.find(present(id, "movie id")?) {
                let field = |at: usize| fields.get(at).map_or_else(String::new, |f| f.trim().to_string());
                plots.push((item, [plot.trim().to_string(), field(6), field(8)]));
            }
            Ok(())
        },
        |_, plots| {
            for (item, texts) in plots {
                for (name, text) in ["plot", "director", "actors"].into_iter().zip(texts) {
                    if !text.is_empty() && text != "N/A" {
                        catalogue.set_attribute(name, item, &text);
                    }
                }
            }
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests;
