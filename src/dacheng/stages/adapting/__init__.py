"""Adapting a small model to a folder of documents: one run, from reading to a measured verdict, and its journal.

events    the append-only journal that the terminal, the page and the report are drawn from
state     what a journal says, as one pure function of its events
plan      minutes and measured speeds, made into steps and questions
parts     what a run is made of (documents, questions, gate, model, trainer), each to be replaced in a test
run       the order of it all
"""
