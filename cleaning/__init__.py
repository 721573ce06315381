"""Raw data → what is trained on. Stands alone: knows no model and no torch.

Where to begin: `pretrain.py`, the command for text, and `chat_files.py`, the one for chats. Then by what one asks:

files → records      encodings, formats, readers, units
texts                normalize, rules (mojibake, markup, boilerplate, simplify, pii, filters, decontaminate), dry_run
exams                exam_files, grams
repeats              equal_keys, repeated_lines, shingles → minhash → near_duplicates
scores               ngrams, calibration, scorer, quality, quality_report
a corpus             settings, pretrain_settings, workers, cleaner → parts, selection → corpus, work_folder, binfile
ids                  bpe (learning a vocabulary), pieces, ranked
chats                conversations, preferences, chat_rules, spool
figures              scripts, histogram, tally, stats, stats_text, packed, urls
public sets          public_sets, hubs, archives, downloads
the demo's data      demo, demo_facts, demo_chat, demo_choice
"""
