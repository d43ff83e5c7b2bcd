"""Benchmarks under several methods: tasks over local files, their scores, and the runner behind `feathervlm eval`.

`scoring` knows neither tasks nor models; `tasks` know their files and scores; `running` asks, `results` adds up, and
`paper` holds the numbers to compare with.
"""
