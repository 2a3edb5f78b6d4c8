# What Beanie's Document is made of; a type checker that goes by PEP 561 finds no types of it.
from pydantic import BaseModel

class LazyModel(BaseModel): ...
