"""Image algorithms in numpy: registration, regions, measurement, crops. They know neither stores nor LangChain."""
