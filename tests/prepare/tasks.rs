//! Rows of ELM's tasks that `prepare --tasks` makes of public fields, read back by the task reader.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use itemlm::data::{
    Columns, Corpus, PrepareOptions, Report, Source, Split, TableOptions, TextTaskEntities, TextTaskRow, prepare,
    read_text_tasks,
};
use itemlm::text::{TextTask, elm24};

use crate::common::{names, real_data};

fn movies(dir: &Path) -> Vec<PathBuf> {
    let files = [
        ("ratings.dat", (1..5).map(|user| format!("{user}::10::5::1\n{user}::20::4::2\n{user}::30::3::3\n")).collect()),
        (
            "movies.dat",
            "10::Bug (1998)::Animation|Comedy\n20::Toy (1995)::Comedy|Animation|War\n30::Sad (1990)::Drama\n"
                .to_string(),
        ),
        ("tags.dat", "1::10::Pixar::1\n1::20::pixar::1\n1::20::toys::1\n".to_string()),
        (
            "x-plots.dat",
            "20::Toy::1995::G::d::g::Ann::w::Bob::Dolls :: come \"alive\".::p\n99::X::1::G::d::g::A::w::B::P::p\n"
                .to_string(),
        ),
        ("c.toml", "steps = []\n[split]\nprotocol = \"leave_one_out\"\n".to_string()),
    ];
    for (name, text) in &files {
        fs::write(dir.join(name), text).unwrap();
    }
    files.iter().map(|(name, _)| dir.join(name)).collect()
}

fn options(source: Source, inputs: Vec<PathBuf>, dir: &Path) -> PrepareOptions {
    PrepareOptions {
        source,
        inputs,
        out: dir.join("corpus"),
        config: None,
        format: None,
        skip_bad: 0,
        memory: None,
        columns: Columns::default(),
        table: TableOptions::default(),
        tasks: Some(dir.join("tasks.jsonl")),
    }
}

/// Returns the rows that were written, by task.
fn rows(options: &PrepareOptions, report: &Report) -> (Corpus, BTreeMap<String, Vec<TextTaskRow>>) {
    let corpus = Corpus::open(&options.out).unwrap();
    let tasks = elm24().unwrap();
    let entities: Vec<TextTaskEntities> = tasks.iter().map(TextTask::entities).collect();
    let mut rows: BTreeMap<String, Vec<TextTaskRow>> = BTreeMap::new();
    for row in read_text_tasks(options.tasks.as_ref().unwrap(), &corpus, &entities).unwrap().rows {
        rows.entry(tasks[row.task].name.clone()).or_default().push(row);
    }
    assert_eq!(report.tasks, rows.iter().map(|(task, rows)| (task.clone(), rows.len())).collect());
    (corpus, rows)
}

#[test]
fn rows_of_three_movies() {
    let dir = tempfile::tempdir().unwrap();
    let files = movies(dir.path());
    let options = PrepareOptions { config: Some(files[4].clone()), ..options(Source::Movielens, files, dir.path()) };
    let report = prepare(&options).unwrap();
    let (_, rows) = rows(&options, &report);
    let texts = |task: &str| rows[task].iter().map(|row| (row.items.clone(), row.text.as_str())).collect::<Vec<_>>();
    assert_eq!(texts("summary"), [(vec![1], "Dolls :: come \"alive\".")]);
    let description = "Toy (1995) is listed under Comedy, Animation and War. It is directed by Ann. It stars Bob. \
                       Dolls :: come \"alive\". \
                       Viewers tagged it \"pixar\" and \"toys\".";
    assert_eq!(texts("long description"), [(vec![1], description)]);
    let common = ["Animation and Comedy", "Comedy and Animation"]
        .map(|genres| format!("Both are listed under {genres}. Viewers tagged both \"pixar\"."));
    assert_eq!(texts("common with nn"), [(vec![0, 1], common[0].as_str()), (vec![1, 0], common[1].as_str())]);
    assert_eq!(
        texts("diff than nn")[0].1,
        "Only the second is listed under War. Viewers tagged only the second \"toys\"."
    );
    // Nothing else shares a genre or tag.
    assert_eq!(
        rows.keys().map(String::as_str).collect::<Vec<_>>(),
        ["common with nn", "diff than nn", "long description", "summary"]
    );
    let first = fs::read(dir.path().join("tasks.jsonl")).unwrap();
    prepare(&options).unwrap();
    assert!(fs::read(dir.path().join("tasks.jsonl")).unwrap() == first);
}

#[test]
fn refusals() {
    let dir = tempfile::tempdir().unwrap();
    let files = movies(dir.path());
    let good = PrepareOptions { config: Some(files[4].clone()), ..options(Source::Movielens, files, dir.path()) };
    let refused = |options: PrepareOptions| {
        let error = prepare(&options).unwrap_err();
        assert!(!options.out.exists() && !options.tasks.unwrap().exists());
        (error.exit_code(), error.to_string())
    };
    let bare = vec![dir.path().join("ratings.dat")];
    let (code, text) = refused(PrepareOptions { inputs: bare, ..good.clone() });
    assert!(code == 1 && text.contains("tasks.jsonl: no item has genres, tags or a plot"), "{text}");
    let (code, text) = refused(PrepareOptions { tasks: Some(dir.path().join("no/tasks.jsonl")), ..good.clone() });
    assert!(code == 1 && text.contains("/no: "), "{text}");
    let (code, text) = refused(PrepareOptions {
        source: Source::Msl,
        config: None,
        inputs: vec![dir.path().to_path_buf()],
        ..good.clone()
    });
    assert!(code == 2 && text.contains("option `tasks`"), "{text}");
    let (code, text) = refused(PrepareOptions { tasks: Some(good.out.clone()), ..good.clone() });
    assert!(code == 2 && text.contains("choose another file"), "{text}");
    // Rows of a corpus that is not there are of no use: no folder can have such a name.
    let (code, text) = refused(PrepareOptions { out: dir.path().join("x".repeat(300)), ..good.clone() });
    assert!(code == 1 && text.contains("xxx: "), "{text}");
    assert!(names(dir.path()).iter().all(|name| !name.starts_with('.')), "{:?}", names(dir.path()));
    let error = prepare(&PrepareOptions { tasks: Some(dir.path().to_path_buf()), ..good.clone() }).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("name a file"), "{error}");
    prepare(&good).unwrap();
    let error = prepare(&PrepareOptions { tasks: Some(good.out.join("tasks.jsonl")), ..good.clone() }).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("choose another file"), "{error}");
    Corpus::open(&good.out).unwrap();
}

/// MovieLens' ids are the same in all its releases, so the plots of 1M serve latest-small, too.
#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn rows_of_movielens() {
    let [plots, latest, ml_1m] = ["movie-texts", "ml-latest-small", "ml-1m"].map(real_data);
    for (source, folder) in [(Source::Movielens, latest), (Source::Openp5, ml_1m)] {
        let dir = tempfile::tempdir().unwrap();
        let options = options(source, vec![folder, plots.clone()], dir.path());
        let report = prepare(&options).unwrap();
        let (corpus, rows) = rows(&options, &report);
        println!("{source}: {} items, {:?}", corpus.items.len(), report.tasks);
        let item = corpus.items.iter().position(|item| item.id == "1").unwrap() as u32;
        for (task, rows) in &rows {
            let of = |split| rows.iter().filter(|row| row.split == split).count();
            println!("  {task}: {} train, {} valid, {} test", of(Split::Train), of(Split::Valid), of(Split::Test));
            assert!(of(Split::Train) > 2 * of(Split::Test) && of(Split::Valid) > 0 && of(Split::Test) > 0);
            for row in rows.iter().filter(|row| row.items[0] == item) {
                println!("    {}: {}", corpus.title(*row.items.last().unwrap()), row.text);
            }
        }
        let plots = rows["summary"].len();
        assert!(rows["long description"].len() == plots && plots > 1000, "{plots}");
        assert!(rows["common with nn"].len() > corpus.items.len() * 9 / 10);
        if source == Source::Openp5 {
            assert!(plots > 3300, "{plots} of 3,416 movies have a plot");
        }
    }
}
