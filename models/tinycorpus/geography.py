"""Countries, and questions about their capitals, continents and languages."""

from __future__ import annotations

from .families import Family
from .turns import table

_CAPITALS = table("""
France: Paris; Italy: Rome; Germany: Berlin; Spain: Madrid; Portugal: Lisbon; England: London
Ireland: Dublin; the United Kingdom: London; Scotland: Edinburgh; Wales: Cardiff; Norway: Oslo
Sweden: Stockholm; Finland: Helsinki; Denmark: Copenhagen; Iceland: Reykjavik; Poland: Warsaw
Austria: Vienna; Switzerland: Bern; Belgium: Brussels; the Netherlands: Amsterdam; Greece: Athens
Hungary: Budapest; Romania: Bucharest; Bulgaria: Sofia; Croatia: Zagreb; Serbia: Belgrade; Ukraine: Kyiv
Russia: Moscow; Turkey: Ankara; Egypt: Cairo; Morocco: Rabat; Kenya: Nairobi; Nigeria: Abuja; Ghana: Accra
Ethiopia: Addis Ababa; Senegal: Dakar; Tunisia: Tunis; Algeria: Algiers; Japan: Tokyo; China: Beijing
India: New Delhi; South Korea: Seoul; Thailand: Bangkok; Vietnam: Hanoi; Nepal: Kathmandu
Indonesia: Jakarta; the Philippines: Manila; Pakistan: Islamabad; Iran: Tehran; Iraq: Baghdad
Mongolia: Ulaanbaatar; Australia: Canberra; New Zealand: Wellington; Canada: Ottawa
the United States: Washington; Mexico: Mexico City; Brazil: Brasília; Argentina: Buenos Aires
Chile: Santiago; Peru: Lima; Colombia: Bogotá; Cuba: Havana; Uruguay: Montevideo; Ecuador: Quito
the Czech Republic: Prague; Slovakia: Bratislava; Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius
Slovenia: Ljubljana; Malta: Valletta; Cyprus: Nicosia; Luxembourg: Luxembourg City
""")

_CONTINENTS = table("""
France: Europe; Italy: Europe; Germany: Europe; Spain: Europe; Portugal: Europe; Norway: Europe
Sweden: Europe; Poland: Europe; Greece: Europe; Austria: Europe; Ireland: Europe; Finland: Europe
Denmark: Europe; Hungary: Europe; England: Europe; Belgium: Europe; Switzerland: Europe; Iceland: Europe
Romania: Europe; Egypt: Africa; Morocco: Africa; Kenya: Africa; Nigeria: Africa; Ghana: Africa
Ethiopia: Africa; Senegal: Africa; Japan: Asia; China: Asia; India: Asia; South Korea: Asia
Thailand: Asia; Vietnam: Asia; Nepal: Asia; Mongolia: Asia; Pakistan: Asia; Indonesia: Asia
Canada: North America; the United States: North America; Mexico: North America; Cuba: North America
Brazil: South America; Argentina: South America; Chile: South America; Peru: South America
Colombia: South America; Ecuador: South America; Uruguay: South America
""")

_LANGUAGES = table("""
France: French; Italy: Italian; Germany: German; Spain: Spanish; Portugal: Portuguese; England: English
Norway: Norwegian; Sweden: Swedish; Finland: Finnish; Denmark: Danish; Poland: Polish; Austria: German
Greece: Greek; Hungary: Hungarian; Romania: Romanian; Russia: Russian; Turkey: Turkish; Egypt: Arabic
Morocco: Arabic; Iraq: Arabic; Japan: Japanese; China: Chinese; South Korea: Korean; Thailand: Thai
Vietnam: Vietnamese; Mexico: Spanish; Australia: English; the United States: English; Brazil: Portuguese
Argentina: Spanish; Chile: Spanish; Peru: Spanish; Cuba: Spanish; Colombia: Spanish; Iceland: Icelandic
Bulgaria: Bulgarian; Ukraine: Ukrainian; New Zealand: English
""")

FAMILIES = (
    Family(
        rows=_CAPITALS,
        questions=(
            "What is the capital of {x}?",
            "What is the capital of {x}?",
            "What's the capital of {x}?",
            "Which city is the capital of {x}?",
            "Name the capital of {x}.",
            "Tell me the capital of {x}.",
            "What is {x}'s capital?",
            "What is the capital city of {x}?",
            "Capital of {x}?",
            "{x}: capital?",
            "Do you know the capital of {x}?",
            "I forgot the capital of {x}. What is it?",
        ),
        answer="The capital of {x} is {y}.",
        follow_ups=(
            "And of {x}?",
            "And {x}?",
            "What about {x}?",
            "And the capital of {x}?",
            "How about {x}?",
        ),
        weight=5.0,
    ),
    Family(
        rows=tuple((city, country) for country, city in _CAPITALS if city != "London"),
        questions=(
            "{x} is the capital of which country?",
            "Which country has {x} as its capital?",
            "Of which country is {x} the capital?",
            "What country is {x} the capital of?",
            "In which country is {x}?",
            "Where is {x}?",
            "What country is {x} in?",
        ),
        answer="{x} is the capital of {y}.",
        follow_ups=("And {x}?", "What about {x}?"),
        weight=2.0,
    ),
    Family(
        rows=_CONTINENTS,
        questions=(
            "On which continent is {x}?",
            "Which continent is {x} in?",
            "What continent is {x} on?",
            "{x} is in which continent?",
            "Tell me the continent of {x}.",
            "Where in the world is {x}?",
            "Where is {x}?",
        ),
        answer="{x} is in {y}.",
        follow_ups=("And {x}?", "What about {x}?", "And where is {x}?"),
        weight=1.5,
    ),
    Family(
        rows=_LANGUAGES,
        questions=(
            "What language do people speak in {x}?",
            "Which language is spoken in {x}?",
            "What do people speak in {x}?",
            "What is the language of {x}?",
            "Which language do they speak in {x}?",
        ),
        answer="People in {x} speak {y}.",
        follow_ups=("And in {x}?", "What about {x}?", "And {x}?"),
        weight=1.5,
    ),
)
