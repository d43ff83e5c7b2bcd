"""Questions, scores, and one runner: benchmarks over local files, the embedded benchmark, the demo.

`tasks` read questions and grade answers, `runner` asks them under methods, `store` keeps the answers, `statistics` and
`results` add them up, and `paper` holds the numbers of the paper.
"""
